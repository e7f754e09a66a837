"""Climb from objects to the roots that keep them alive.

Covers: one walk over the heap per level, for all samples of the level at once; where a climb stops; the shortest way
from a sample to a root.
Leaves to others: what the ways are called (`_naming`), which samples to take (`_census`, `_samples`).

Each walk is `gc.get_referrers`, which stops the process for as long as it takes: some 60 ms for 750,000 objects. The
caller gets a word between the walks. Nothing is kept afterwards: `drop()` lets go of every object.
"""

import gc
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from memtools._gc import unfreeze
from memtools.heap._describe import locals_of, name_thing
from memtools.heap._inspect import class_of, instance_dict, is_kind, stepper

# Who has more referrers is reached by another way as well; and labelling would take long.
FAN_OUT: Final = 40  # of one type, and three times as many of all
DEPTH: Final = 12  # walks at most; the dict of an instance is a level of its own
# `get_referrers` compares every reference of the heap with every sample.
MOST_SAMPLES: Final = 24

# Modules that may not be loaded: who has not loaded asyncio has no event loop.
_ROOT_CLASSES: Final = (("threading", "Thread"), ("asyncio.events", "AbstractEventLoop"), ("_asyncio", "Task"))


class Climb:
    """One climb, from a few samples.

    Args:
        samples: the objects to climb from; the climb holds them until `drop()`.
        unseen: objects of the caller's that refer to the samples and are nobody's leak.
    """

    def __init__(self, samples: Sequence[object], unseen: Sequence[object] = ()) -> None:
        self._ours = {id(self), id(samples), id(unseen), *map(id, unseen)}
        self._parents: dict[int, list[Any]] = {}  # Any: strangers
        self._fans: Counter[tuple[int, int]] = Counter()  # by child and type of the parent
        self._roots: set[int] = set()
        self._modules = _module_dicts()
        unfreeze()
        self._samples = list(samples[:MOST_SAMPLES])
        self._frontier: list[object] = self._samples

    def walk(self) -> Iterator[None]:
        """Walk up level by level; each step is one walk over the heap."""
        for sample in self._samples:
            self._note_root(sample)
        for _ in range(DEPTH):
            if not self._frontier:
                return
            self._step()
            yield
            if all(self.way(sample) for sample in self._samples):
                return

    def _step(self) -> None:
        climbing = [one for one in self._frontier if id(one) not in self._roots]
        known = {id(one): one for one in climbing}
        for one in climbing:
            self._parents.setdefault(id(one), [])
        following: dict[int, object] = {}
        asked = tuple(climbing)  # the very tuple that the call gets: it refers to all of them
        hide = self._hidden(climbing, known, following, asked)
        for referrer in gc.get_referrers(*asked) if asked else ():
            if id(referrer) in hide or _is_of_this_room(referrer):
                continue
            if issubclass(class_of(referrer), types.ModuleType):
                continue  # its dict is there as well; see `without_modules`
            self._connect(referrer, known, following)
        self._frontier = _mixed(following.values())[: MOST_SAMPLES * 2]

    def _hidden(self, *others: object) -> set[int]:
        mine = (self.__dict__, self._parents, self._samples, self._frontier, *self._parents.values())
        return self._ours | {id(one) for one in (*mine, *others)}

    def _connect(self, referrer: Any, known: dict[int, object], following: dict[int, object]) -> None:
        children = {id(child) for child in gc.get_referents(referrer)} & known.keys()
        for child in children:
            parents = self._parents[child]
            # Of each type some: the young come first, and a thousand bound methods would hide the one who lasts.
            fan = child, id(class_of(referrer))
            self._fans[fan] += 1
            if self._fans[fan] > FAN_OUT or len(parents) >= 3 * FAN_OUT:
                continue
            parents.append(referrer)
        if id(referrer) not in self._parents and id(referrer) not in self._roots:
            self._note_root(referrer)
            following[id(referrer)] = referrer

    def _note_root(self, one: object) -> None:
        if id(one) in self._modules or is_root(one):
            self._roots.add(id(one))

    def way(self, sample: object) -> tuple[object, ...]:
        """Return the shortest way from `sample` to a root, both included; empty while none is known."""
        before: dict[int, object] = {id(sample): None}
        level: list[object] = [sample]
        while level:
            rooted = [one for one in level if id(one) in self._roots]
            if rooted:
                return _back(min(rooted, key=_rank), before)
            above: list[object] = []
            for one in level:
                for parent in self._parents.get(id(one), ()):
                    if id(parent) not in before:
                        before[id(parent)] = one
                        above.append(parent)
            level = above
        return ()

    def farthest(self, sample: object) -> tuple[object, ...]:
        """Return a longest known way up from `sample`: for one that no root was found for."""
        before: dict[int, object] = {id(sample): None}
        level: list[object] = [sample]
        last = level
        while level:
            last = level
            level = []
            for one in last:
                for parent in self._parents.get(id(one), ()):
                    if id(parent) not in before:
                        before[id(parent)] = one
                        level.append(parent)
        return _back(last[0], before)

    def module_name(self, found: object) -> str | None:
        """Return the name of the module whose dict this is, None if it is none's."""
        return self._modules.get(id(found))

    def drop(self) -> None:
        """Let go of every object."""
        self._parents.clear()
        self._samples = []
        self._frontier = []


def is_root(one: object) -> bool:
    """Return whether a climb stops here: a module, class, frame, coroutine or generator, thread or event loop."""
    cls = class_of(one)
    return (
        issubclass(cls, (types.ModuleType, type, types.FrameType))
        or stepper(cls) is not None
        or any(is_kind(cls, module, name) for module, name in _ROOT_CLASSES)
    )


def _rank(root: object) -> int:
    # Of several roots at one distance, the one that lasts is named: a frame ends some time.
    cls = class_of(root)
    if issubclass(cls, (types.ModuleType, dict)):
        return 0
    return 1 if issubclass(cls, type) else 3 if issubclass(cls, types.FrameType) else 2


def _mixed(found: Iterable[object]) -> list[object]:
    # The first of each type, then the second of each, and so on.
    seen: Counter[int] = Counter()
    places: list[tuple[int, object]] = []
    for one in found:
        kind = id(class_of(one))
        places.append((seen[kind], one))
        seen[kind] += 1
    places.sort(key=lambda pair: pair[0])
    return [one for _, one in places]


def _back(root: object, before: dict[int, object]) -> tuple[object, ...]:
    way: list[object] = [root]
    while (below := before[id(way[-1])]) is not None:
        way.append(below)
    return tuple(reversed(way))


def _module_dicts() -> dict[int, str]:
    found: dict[int, str] = {}
    for name, module in list(sys.modules.items()):
        # What is in there need not be a module, nor its name a string.
        if class_of(name) is str and issubclass(class_of(module), types.ModuleType):
            found[id(instance_dict(module))] = name
    return found


def _is_of_this_room(one: Any) -> bool:
    # What runs here holds what it looks at: frames (while traced), and the generators of the walks.
    cls = class_of(one)
    if cls is types.FrameType:
        code = one.f_code
    elif cls is types.GeneratorType:
        code = one.gi_code
    elif cls is types.CoroutineType:
        code = one.cr_code
    else:
        return False
    return bool(code.co_filename.startswith(_ROOM))


_ROOM: Final = __file__.rpartition("_referrers")[0]


# Which variable of a function that runs now holds an object.
#
# The collector does not see the variables of running functions (their frames belong to it only once they have ended), so
# a climb ends below them without a root.


def variable_of_running_frame(thing: object) -> str:
    """Return the function and the variable, of any thread, that holds `thing`; empty if none does."""
    frames = list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage]  # documented
    frame = None
    try:
        while frames:
            frame = frames.pop()
            frames += [frame.f_back] if frame.f_back is not None else []
            if frame.f_code.co_filename.startswith(_ROOM):
                continue
            name = next((name for name, value in locals_of(frame) if value is thing), None)
            if name is not None:
                return f"{name_thing(frame)}, variable {name}"
        return ""
    finally:
        del frames, frame  # one of them is this one: they would keep each other alive, and `thing`
