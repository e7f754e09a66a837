"""`why_alive`: which holders keep an object alive.

Safe in any thread; other threads run between the walks over the heap. Not for a signal handler, which may run in the
middle of any line. No code of an inspected object runs, and no object is held afterwards.
"""

import asyncio
import contextvars
import gc
import re
import sys
import time
import types
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any, Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.heap._census import HeapGrowth, find_by_address, find_type, is_weak_storage, newest_instances, newest_item
from memtools.heap._describe import LinksOfPath, describe_object, describe_path, filling_cache, hint_for
from memtools.heap._inspect import is_any_of, key_text, length_of, real_type, type_name
from memtools.heap._large_objects import find_untracked
from memtools.heap._largest import shallow_size
from memtools.heap._referrers import MAX_SAMPLES, ReferrerWalk, variable_of_running_frame
from memtools.units import parse_count, parse_seconds

_MANY_AT_EXIT: Final = 64  # functions; few programs register ten
_MANY_FROZEN: Final = 1000  # objects; Python 3.12 and later freeze some hundreds themselves

# Keys, indices, lines, and names of tasks and threads, in which otherwise equal paths differ.
_VARYING_PARTS: Final = re.compile(r"\[[^\]]*\]| at line [0-9]+|(?<!ContextVar )'[^']*'")
_INCOMPLETE: Final = "time ran out, or a chain is too long to be followed: not every root was found"
_TIMES: Final = re.compile(r", ([0-9,]+) times$")


@record
class ReferrerPath:
    """A path of references that keeps objects alive.

    Attributes:
        holders: descriptions of the holders, the nearest first, the root last.
        count: how many of the inspected objects have such a path; keys and indices may differ.
        is_rooted: whether the last holder is a root (a module, class, frame, coroutine, thread or event loop).
        hint: what such a path usually means and what to change; empty if the pattern is not known.
        filling: describes a bounded cache on the path that is not full yet; empty if there is none.
    """

    holders: tuple[str, ...]
    count: int
    is_rooted: bool
    hint: str
    filling: str = ""

    def __str__(self) -> str:
        return " <- ".join(self.holders) or "nothing that Python can see"


@record
class WhyAlive:
    """What keeps an object alive, or the instances of a class.

    Attributes:
        what: the description of the object or class.
        alive: how many instances of the class live, or how many items the container has; 1 for another object.
        example: the newest key or item of a growing container; empty for other objects.
        paths: how the inspected objects are held, the most frequent path first; empty if none of them lives.
        growth: the growth that was passed to `why_alive`, if it was one.
        is_complete: False if not every root was found: the time ran out, or a chain has more than 400,000 links.
        held_bytes: what a growing container and its items take, estimated from a sample; 0 for other objects.
    """

    what: str
    alive: int
    example: str
    paths: tuple[ReferrerPath, ...]
    growth: HeapGrowth | None = None
    is_complete: bool = True
    held_bytes: int = 0

    @property
    def hint(self) -> str:
        """What the most frequent path usually means and what to change."""
        return self.paths[0].hint if self.paths else ""

    def __str__(self) -> str:
        subject = str(self.growth) if self.growth is not None else f"{self.what} ({self.alive:,} alive)"
        if not self.paths:
            return f"{subject}: no such object is alive"
        lines = [f"{subject} <- {self.paths[0]}{' | ' + self.hint if self.hint else ''}"]
        lines += [f"  {path.count} more <- {path}{' | ' + path.hint if path.hint else ''}" for path in self.paths[1:]]
        lines += [] if self.is_complete else [f"  ({_INCOMPLETE})"]
        return "\n".join(lines)


def why_alive(target: object, *, samples: int = 8, timeout: float = 2.0, show_values: bool = False) -> WhyAlive:
    """Return what keeps `target` alive.

    Example:
        >>> class Order: ...
        >>> orders = {"AAPL": Order()}
        >>> why_alive(Order).alive
        1

    Args:
        target: an object; or a class, for its youngest instances; or a `HeapGrowth`, as `growth_between` returns it.
        samples: how many instances of a class are inspected, at most 24.
        timeout: seconds after which no further walk over the heap is begun.
        show_values: show keys and items themselves, which may be secrets, not their types and lengths.

    Raises:
        ConfigError: for arguments that make no sense.
    """
    steps = answer_in_steps(target, samples=samples, timeout=timeout, show_values=show_values)
    while (answer := next(steps)) is None:
        pass
    return answer


async def why_alive_async(
    target: object,
    *,
    samples: int = 8,
    timeout: float = 2.0,  # noqa: ASYNC109  # it bounds the walks, not the wait
    pause: float = 0.0,
    show_values: bool = False,
) -> WhyAlive:
    """Return the same as `why_alive`; other tasks run between the walks over the heap.

    Args:
        target: see `why_alive`.
        samples: see `why_alive`.
        timeout: see `why_alive`; pauses count.
        pause: seconds between two walks.
        show_values: see `why_alive`.

    Raises:
        ConfigError: for arguments that make no sense.
    """
    parse_seconds(pause, name="pause")
    for answer in answer_in_steps(target, samples=samples, timeout=timeout, show_values=show_values):
        if answer is not None:
            return answer
        await asyncio.sleep(pause)
    raise AssertionError("unreachable: the last step is the answer")


def answer_in_steps(
    target: Any, *, samples: int = 8, timeout: float = 2.0, show_values: bool = False
) -> Iterator[WhyAlive | None]:
    """Yield None after each walk over the heap, and the answer at the end, so that the caller can pause between walks.

    Args:
        target: see `why_alive`.
        samples: see `why_alive`.
        timeout: see `why_alive`; pauses count.
        show_values: see `why_alive`.

    Raises:
        ConfigError: for arguments that make no sense, at the first step.
    """
    if parse_count(samples, name="samples") > MAX_SAMPLES:
        raise ConfigError("samples", samples, f"a whole number from 1 to {MAX_SAMPLES}")
    deadline = time.monotonic() + parse_seconds(timeout, name="timeout")
    found, alive, what, growth = _samples_of(target, samples)
    holders: dict[int, Any] = {}
    if growth is not None and growth.large:
        yield None
        found, holders = _find_large(growth, samples)
    yield None

    walk = ReferrerWalk(found, excluded=(found, holders), holders=holders)
    holders.clear()
    ran_out = False
    for _ in walk.run():
        yield None
        ran_out = time.monotonic() > deadline
        if ran_out:
            break
    is_complete = not (ran_out or walk.is_cut) or all(walk.path_to_root(sample) for sample in found)
    paths = _group_equal([_path_of(walk, sample, show_values=show_values) for sample in found])
    example = _example(found[0], show_values) if growth is not None and growth.address and found else ""
    held_bytes = shallow_size(found[0]) if growth is not None and growth.address and found else 0
    walk.clear()
    found.clear()
    yield WhyAlive(what, alive, example, paths, growth, is_complete, held_bytes)


def paths_to(objects: list[Any], *, timeout: float = 2.0) -> tuple[ReferrerPath, ...]:  # Any: foreign objects
    """Return a path that keeps each of a few objects alive, in their order, from one walk for all of them.

    Args:
        objects: at most 24; references from this list itself are left out.
        timeout: seconds after which no further walk over the heap is begun.

    Raises:
        ConfigError: for more than 24.
    """
    if len(objects) > MAX_SAMPLES:
        raise ConfigError("objects", len(objects), f"at most {MAX_SAMPLES} objects")
    seconds = parse_seconds(timeout, name="timeout")
    walk = ReferrerWalk(objects, excluded=(objects,))
    walk.run_for(seconds)
    paths = tuple(_path_of(walk, found) for found in objects)
    walk.clear()
    return paths


def _samples_of(target: Any, limit: int) -> tuple[list[Any], int, str, HeapGrowth | None]:
    if real_type(target) is not HeapGrowth:
        if issubclass(real_type(target), type):
            found, alive = newest_instances(target, limit)
            return found, alive, type_name(target), None
        return [target], 1, describe_object(target), None
    if target.large:
        return [], target.after, target.type_name, target
    if target.address:
        found = [each for each in find_by_address({target.address: target}) if not is_weak_storage(each)]
        return found, length_of(found[0]) if found else 0, target.type_name, target
    cls = find_type(target.type_name)
    found, alive = newest_instances(cls, limit) if cls is not None else ([], 0)
    return found, alive, target.type_name, target


def _find_large(growth: HeapGrowth, limit: int) -> tuple[list[Any], dict[int, Any]]:
    found, holders = find_untracked(set(growth.large[:limit]))
    return [each for each in found if type_name(real_type(each)) == growth.type_name], holders


def _path_of(walk: ReferrerWalk, sample: object, *, show_values: bool = False) -> ReferrerPath:
    path, links = _with_links(walk, walk.path_to_root(sample))
    if path:
        names = describe_path(path, walk.module_name(path[-1]), show_values=show_values, links=links)
        return ReferrerPath(names or (describe_object(sample),), 1, True, hint_for(path, names), filling_cache(path))
    path, links = _with_links(walk, walk.longest_path(sample))
    names = describe_path(path, None, show_values=show_values, links=links)
    if real_type(path[-1]) is contextvars.Context:
        # Of a task, callback or thread that holds it from C code; the variable says who.
        return ReferrerPath(names, 1, True, hint_for(path, names), filling_cache(path))
    variable = variable_of_running_frame(path[-1])
    if variable:
        names = (*names, variable)
        return ReferrerPath(names, 1, True, hint_for(path, names), filling_cache(path))
    return ReferrerPath(names, 1, False, hint_for(path, names) or _hint_without_root(path, names), filling_cache(path))


def _with_links(walk: ReferrerWalk, path: Sequence[object]) -> tuple[Sequence[object], LinksOfPath | None]:
    for place, (child, holder) in enumerate(pairwise(path), 1):
        chain = walk.chain_between(child, holder)
        if chain is not None:
            links = chain.links()
            whole = [*path[:place], *links, *path[place:]]
            return whole, LinksOfPath(place, place + len(links), chain.period) if links else None
    return path, None


def _hint_without_root(path: Sequence[object], names: tuple[str, ...]) -> str:
    registered = _registered_at_exit()
    if registered >= _MANY_AT_EXIT and _may_be_registered(path[-1], registered):
        return f"held from C code, and {registered:,} functions are registered with atexit: unregister them"
    frozen = gc.get_freeze_count()
    if frozen >= _MANY_FROZEN:
        return f"perhaps held by one of the {frozen:,} objects frozen by gc.freeze(), which cannot be listed"
    if not gc.isenabled():
        return "kept by a reference cycle, and the garbage collector is off: gc.enable(), or break the cycle"
    return (
        "a reference cycle that waits for the garbage collector, or held from C code" if names else "held from C code"
    )


def _may_be_registered(last: Any, registered: int) -> bool:  # Any: read by its exact type only
    # Since Python 3.14 `atexit` keeps its functions in a list that the garbage collector knows.
    if real_type(last) is list and sys.version_info >= (3, 14):
        return len(last) == registered
    return is_any_of(real_type(last), (types.MethodType, types.FunctionType, partial))


def _registered_at_exit() -> int:
    # Before Python 3.14 the list itself is in C, where the garbage collector does not look.
    atexit: Any = sys.modules.get("atexit")
    return atexit._ncallbacks() if real_type(atexit) is types.ModuleType else 0


def _group_equal(paths: list[ReferrerPath]) -> tuple[ReferrerPath, ...]:
    groups: dict[str, list[ReferrerPath]] = {}
    for path in paths:
        groups.setdefault(" <- ".join(comparable_holders(path)), []).append(path)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return tuple(_with_count(max(group, key=_links_told), len(group)) for group in ordered)


def comparable_holders(path: ReferrerPath) -> list[str]:
    """Return the holders of a path without what differs in otherwise equal paths; equal ones in a row are one.

    Samples of one chain are held by chains of different length.
    """
    names = (_VARYING_PARTS.sub("[]", _TIMES.sub("", holder)) for holder in path.holders)
    return [name for name, _ in groupby(names)]


def _links_told(path: ReferrerPath) -> int:
    numbers = (_TIMES.search(holder) for holder in path.holders)
    return sum(int(number[1].replace(",", "")) for number in numbers if number is not None)


def _with_count(path: ReferrerPath, count: int) -> ReferrerPath:
    return ReferrerPath(path.holders, count, path.is_rooted, path.hint, path.filling)


def _example(container: object, show_values: bool) -> str:
    newest = newest_item(container)
    if newest is None:
        return ""
    key, value = newest
    if key is None and real_type(value) is bytes:
        return f"<{len(value):,} bytes>"  # the contents would not help to find the holder
    if key is None:
        return key_text(value, show_values=show_values)
    return f"{key_text(key, show_values=show_values)}: {type_name(real_type(value))}"
