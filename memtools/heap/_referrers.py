"""Walk from objects over their referrers to the roots that keep them alive.

Each step is one `gc.get_referrers` for all objects of a level, which stops the process for as long as it takes: some 60
ms for 750,000 objects. The caller gets control back between the steps.

A chain, such as a linked list, would take a step for each of its links. Where the last links of a path repeat each
other, the chain is followed to its end with two passes over the heap, in slices of some 10 ms each (`_chains.py`).
"""

import gc
import sys
import time
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from memtools._gc import unfreeze
from memtools.heap._chains import Chain, ChainSearch, period_of
from memtools.heap._describe import describe_object, locals_of
from memtools.heap._inspect import PACKAGE_FOLDER, generator_kind, instance_dict, is_kind, is_own_frame, real_type

# An object with more referrers is reachable by other paths as well, and describing all of them would take long. The
# limit is for the referrers of one type; three times as many are kept in all.
MAX_REFERRERS_PER_TYPE: Final = 40
MAX_DEPTH: Final = 12  # levels; the dict of an instance is a level of its own
MAX_SAMPLES: Final = 24  # `get_referrers` compares every reference of the heap with every sample
_CHAIN_AFTER: Final = 5  # levels, before a chain is looked for
_MAX_CHAINS: Final = 2  # followed at once: a list that is linked both ways is left at both ends

_NONE: Final[Mapping[int, object]] = types.MappingProxyType({})

# Classes of modules that may not be loaded.
_ROOT_CLASSES: Final = (("threading", "Thread"), ("asyncio.events", "AbstractEventLoop"), ("_asyncio", "Task"))


class ReferrerWalk:
    """One referrer walk, from a few objects.

    Args:
        samples: the objects to start from; held until `clear()`.
        excluded: objects of the caller that refer to the samples and are left out of the paths.
        holders: by the address of a sample, an object that holds it and that the garbage collector does not track.

    Attributes:
        is_cut: whether a chain has more links than are followed.
    """

    def __init__(
        self, samples: Sequence[object], excluded: Sequence[object] = (), holders: Mapping[int, object] = _NONE
    ) -> None:
        self.is_cut = False
        self._excluded = {id(self), id(samples), id(excluded), *map(id, excluded)}
        self._parents: dict[int, list[Any]] = {}  # Any: foreign objects
        self._reached_from: dict[int, Any] = {}  # the child by which an object was reached first
        self._chains: dict[tuple[int, int], Chain] = {}  # by the first link and the holder behind the last
        self._referrer_counts: Counter[tuple[int, int]] = Counter()  # by child and type of the parent
        self._roots: set[int] = set()
        self._modules = _module_dicts()
        unfreeze()
        self._samples = list(samples[:MAX_SAMPLES])
        self._frontier: list[object] = list(self._samples)
        for sample in self._samples:
            holder = holders.get(id(sample))
            if holder is not None:
                self._parents[id(sample)] = [holder]
                self._reached_from[id(holder)] = sample
                self._frontier.append(holder)

    def run(self) -> Iterator[None]:
        """Walk level by level until each sample has a path to a root; each step is one walk over the heap, or a slice.

        A chain is followed once, and the levels behind its end are counted anew.
        """
        for sample in self._samples:
            self._record_root(sample)
        level, last = 0, MAX_DEPTH
        while level < last and self._frontier:
            self._step()
            level += 1
            yield
            if all(self.path_to_root(sample) for sample in self._samples):
                return
            if level >= _CHAIN_AFTER and not self._chains:
                yield from self._follow_chains()
                if self._chains:
                    level, last = 0, MAX_DEPTH
                    if all(self.path_to_root(sample) for sample in self._samples):
                        return

    def run_for(self, seconds: float) -> None:
        """Walk without a pause, for so many seconds: no step is begun after them."""
        deadline = time.monotonic() + seconds
        for _ in self.run():
            if time.monotonic() > deadline:
                return

    def _follow_chains(self) -> Iterator[None]:
        starts = [(link, period) for link in self._frontier if (period := period_of(self._way_back(link)))]
        if not starts:
            return
        period = starts[0][1]  # other patterns are left: each would cost two passes
        links = [link for link, types in starts if set(map(id, types)) == set(map(id, period))][:_MAX_CHAINS]
        search = ChainSearch(links, period, is_root=self._is_root, is_known=self._parents.__contains__)
        starts.clear()
        yield from search.run(self._own_objects(links, starts))
        self.is_cut = search.is_cut
        frontier = [link for link in self._frontier if not any(link is start for start in links)]
        for chain in search.chains:
            self._parents.setdefault(id(chain.start), []).append(chain.holder)
            self._reached_from.setdefault(id(chain.holder), chain.start)
            self._chains[id(chain.start), id(chain.holder)] = chain
            self._record_root(chain.holder)
            if id(chain.holder) not in self._roots and id(chain.holder) not in self._parents:
                frontier.append(chain.holder)
        if search.chains:
            self._frontier = frontier

    def _way_back(self, link: object) -> list[object]:
        found = [link]
        while (child := self._reached_from.get(id(found[-1]))) is not None and len(found) < 2 * MAX_DEPTH:
            found.append(child)
        return found

    def _is_root(self, found: object) -> bool:
        return id(found) in self._modules or is_root(found)

    def _step(self) -> None:
        level = [found for found in self._frontier if id(found) not in self._roots]
        known = {id(found): found for found in level}
        for found in level:
            self._parents.setdefault(id(found), [])
        next_level: dict[int, object] = {}
        targets = tuple(level)  # the tuple that the call below gets: it refers to all of them
        own = self._own_objects(level, known, next_level, targets)
        for referrer in gc.get_referrers(*targets) if targets else ():
            if id(referrer) in own or is_own_frame(referrer):
                continue
            if issubclass(real_type(referrer), types.ModuleType):
                continue  # its dict is a referrer as well; see `skip_modules`
            self._connect(referrer, known, next_level)
        self._frontier = _interleave_by_type(next_level.values())[: MAX_SAMPLES * 2]

    def _own_objects(self, *local: object) -> set[int]:
        held = (
            self.__dict__,
            self._parents,
            self._reached_from,
            self._samples,
            self._frontier,
            *self._parents.values(),
        )
        return self._excluded | {id(own) for own in (*held, self._chains, *self._chains.values(), *local)}

    def _connect(self, referrer: Any, known: dict[int, object], next_level: dict[int, object]) -> None:
        children = {id(child) for child in gc.get_referents(referrer)} & known.keys()
        for child in children:
            parents = self._parents[child]
            # The limit is per type: `get_referrers` lists young objects first, and 1,000 bound methods would crowd out
            # the long-lived holder.
            edge = child, id(real_type(referrer))
            self._referrer_counts[edge] += 1
            if self._referrer_counts[edge] > MAX_REFERRERS_PER_TYPE or len(parents) >= 3 * MAX_REFERRERS_PER_TYPE:
                continue
            parents.append(referrer)
            self._reached_from.setdefault(id(referrer), known[child])
        if id(referrer) not in self._parents and id(referrer) not in self._roots:
            self._record_root(referrer)
            next_level[id(referrer)] = referrer

    def _record_root(self, found: object) -> None:
        if self._is_root(found):
            self._roots.add(id(found))

    def path_to_root(self, sample: object) -> tuple[object, ...]:
        """Return the shortest path from `sample` to a root, both included; empty while none is known."""
        before: dict[int, object] = {id(sample): None}
        level: list[object] = [sample]
        while level:
            roots = [found for found in level if id(found) in self._roots]
            if roots:
                return _trace_back(min(roots, key=_lifetime_rank), before)
            level = self._referrers_of(level, before)
        return ()

    def longest_path(self, sample: object) -> tuple[object, ...]:
        """Return a longest known path from `sample`, for a sample without a path to a root."""
        before: dict[int, object] = {id(sample): None}
        level: list[object] = [sample]
        last = level
        while level:
            last = level
            level = self._referrers_of(last, before)
        return _trace_back(last[0], before)

    def _referrers_of(self, level: list[object], before: dict[int, object]) -> list[object]:
        """Return the known referrers of a level that are new to the search, with their child recorded in `before`."""
        found: list[object] = []
        for child in level:
            for referrer in self._parents.get(id(child), ()):
                if id(referrer) not in before:
                    before[id(referrer)] = child
                    found.append(referrer)
        return found

    def chain_between(self, child: object, holder: object) -> Chain | None:
        """Return the chain that was followed from one object of a path to the next one, None if there was none."""
        return self._chains.get((id(child), id(holder)))

    def module_name(self, found: object) -> str | None:
        """Return the name of the module whose dict this is, None for any other object."""
        return self._modules.get(id(found))

    def clear(self) -> None:
        """Release every object."""
        self._parents.clear()
        self._reached_from.clear()
        self._chains.clear()
        self._samples = []
        self._frontier = []


def is_root(found: object) -> bool:
    """Return whether a walk stops here: a module, class, frame, coroutine, generator, thread, task or event loop."""
    cls = real_type(found)
    return (
        issubclass(cls, (types.ModuleType, type, types.FrameType))
        or generator_kind(cls) is not None
        or any(is_kind(cls, module, name) for module, name in _ROOT_CLASSES)
    )


def _lifetime_rank(root: object) -> int:
    # Of several roots at the same distance, the one that lives longest comes first: a frame ends.
    cls = real_type(root)
    if issubclass(cls, (types.ModuleType, dict)):
        return 0
    return 1 if issubclass(cls, type) else 3 if issubclass(cls, types.FrameType) else 2


def _interleave_by_type(found: Iterable[object]) -> list[object]:
    # The first of each type, then the second of each, and so on.
    seen: Counter[int] = Counter()
    ranked: list[tuple[int, object]] = []
    for referrer in found:
        kind = id(real_type(referrer))
        ranked.append((seen[kind], referrer))
        seen[kind] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [referrer for _, referrer in ranked]


def _trace_back(root: object, before: dict[int, object]) -> tuple[object, ...]:
    path: list[object] = [root]
    while (child := before[id(path[-1])]) is not None:
        path.append(child)
    return tuple(reversed(path))


def _module_dicts() -> dict[int, str]:
    found: dict[int, str] = {}
    for name, module in list(sys.modules.items()):
        # `sys.modules` may hold any object under any key.
        if real_type(name) is str and issubclass(real_type(module), types.ModuleType):
            found[id(instance_dict(module))] = name
    return found


def variable_of_running_frame(found: object) -> str:
    """Return the function and the variable, in any thread, that holds an object; empty if there is none.

    The garbage collector does not track the variables of running functions (a frame is tracked only once its function
    has returned), so a walk ends at such an object without a root.
    """
    frames = list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage]  # documented
    frame = None
    try:
        while frames:
            frame = frames.pop()
            frames += [frame.f_back] if frame.f_back is not None else []
            if frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
                continue
            name = next((name for name, value in locals_of(frame) if value is found), None)
            if name is not None:
                return f"{describe_object(frame)}, variable {name}"
        return ""
    finally:
        del frames, frame  # the frame of this function is among them: a reference cycle that would keep `found` alive
