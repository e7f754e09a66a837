"""`why_alive`: which holders keep an object alive.

Safe in any thread; other threads run between the walks over the heap. Not for a signal handler, which may run in the
middle of any line. No code of an inspected object runs, and no object is held afterwards.
"""

import asyncio
import gc
import re
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.heap._census import HeapGrowth, find_by_address, find_type, is_weak_storage, newest_instances, newest_item
from memtools.heap._describe import describe_object, describe_path, filling_cache, hint_for
from memtools.heap._inspect import is_any_of, key_text, length_of, real_type, type_name
from memtools.heap._referrers import MAX_SAMPLES, ReferrerWalk, variable_of_running_frame
from memtools.units import parse_count, parse_seconds

_MANY_AT_EXIT: Final = 64  # functions; few programs register ten
_MANY_FROZEN: Final = 1000  # objects; Python 3.12 and later freeze some hundreds themselves

# Keys, indices, lines, and names of tasks and threads, in which otherwise equal paths differ.
_VARYING_PARTS: Final = re.compile(r"\[[^\]]*\]| at line [0-9]+|'[^']*'")


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
        is_complete: False if the time ran out before every root was found.
    """

    what: str
    alive: int
    example: str
    paths: tuple[ReferrerPath, ...]
    growth: HeapGrowth | None = None
    is_complete: bool = True

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
        lines += ["  (time ran out before every root was found)"] if not self.is_complete else []
        return "\n".join(lines)


def why_alive(target: object, *, samples: int = 8, timeout: float = 2.0) -> WhyAlive:
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

    Raises:
        ConfigError: for arguments that make no sense.
    """
    steps = answer_in_steps(target, samples=samples, timeout=timeout)
    while (answer := next(steps)) is None:
        pass
    return answer


async def why_alive_async(
    target: object,
    *,
    samples: int = 8,
    timeout: float = 2.0,  # noqa: ASYNC109  # it bounds the walks, not the wait
    pause: float = 0.0,
) -> WhyAlive:
    """Return the same as `why_alive`; other tasks run between the walks over the heap.

    Args:
        target: see `why_alive`.
        samples: see `why_alive`.
        timeout: see `why_alive`; pauses count.
        pause: seconds between two walks.

    Raises:
        ConfigError: for arguments that make no sense.
    """
    parse_seconds(pause, name="pause")
    for answer in answer_in_steps(target, samples=samples, timeout=timeout):
        if answer is not None:
            return answer
        await asyncio.sleep(pause)
    raise AssertionError("unreachable: the last step is the answer")


def answer_in_steps(target: Any, *, samples: int = 8, timeout: float = 2.0) -> Iterator[WhyAlive | None]:
    """Yield None after each walk over the heap, and the answer at the end, so that the caller can pause between walks.

    Args:
        target: see `why_alive`.
        samples: see `why_alive`.
        timeout: see `why_alive`; pauses count.

    Raises:
        ConfigError: for arguments that make no sense, at the first step.
    """
    if parse_count(samples, name="samples") > MAX_SAMPLES:
        raise ConfigError("samples", samples, f"a whole number from 1 to {MAX_SAMPLES}")
    deadline = time.monotonic() + parse_seconds(timeout, name="timeout")
    found, alive, what, growth = _samples_of(target, samples)
    yield None

    walk = ReferrerWalk(found, excluded=(found,))
    is_complete = True
    for _ in walk.run():
        yield None
        if time.monotonic() > deadline:
            is_complete = all(walk.path_to_root(sample) for sample in found)
            break
    paths = _group_equal([_path_of(walk, sample) for sample in found])
    example = _example(found[0]) if growth is not None and found else ""
    walk.clear()
    found.clear()
    yield WhyAlive(what, alive, example, paths, growth, is_complete)


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
    deadline = time.monotonic() + parse_seconds(timeout, name="timeout")
    walk = ReferrerWalk(objects, excluded=(objects,))
    for _ in walk.run():
        if time.monotonic() > deadline:
            break
    paths = tuple(_path_of(walk, found) for found in objects)
    walk.clear()
    return paths


def _samples_of(target: Any, limit: int) -> tuple[list[Any], int, str, HeapGrowth | None]:
    if real_type(target) is not HeapGrowth:
        if issubclass(real_type(target), type):
            found, alive = newest_instances(target, limit)
            return found, alive, type_name(target), None
        return [target], 1, describe_object(target), None
    if target.address:
        found = [each for each in find_by_address({target.address: target}) if not is_weak_storage(each)]
        return found, length_of(found[0]) if found else 0, target.type_name, target
    cls = find_type(target.type_name)
    found, alive = newest_instances(cls, limit) if cls is not None else ([], 0)
    return found, alive, target.type_name, target


def _path_of(walk: ReferrerWalk, sample: object) -> ReferrerPath:
    path = walk.path_to_root(sample)
    if path:
        names = describe_path(path, walk.module_name(path[-1]))
        return ReferrerPath(names or (describe_object(sample),), 1, True, hint_for(path, names), filling_cache(path))
    path = walk.longest_path(sample)
    names = describe_path(path, None)
    variable = variable_of_running_frame(path[-1])
    if variable:
        names = (*names, variable)
        return ReferrerPath(names, 1, True, hint_for(path, names), filling_cache(path))
    return ReferrerPath(names, 1, False, hint_for(path, names) or _hint_without_root(path, names), filling_cache(path))


def _hint_without_root(path: Sequence[object], names: tuple[str, ...]) -> str:
    registered = _registered_at_exit()
    if registered >= _MANY_AT_EXIT and is_any_of(real_type(path[-1]), (types.MethodType, types.FunctionType, partial)):
        return f"held from C code, and {registered:,} functions are registered with atexit: unregister them"
    frozen = gc.get_freeze_count()
    if frozen >= _MANY_FROZEN:
        return f"perhaps held by one of the {frozen:,} objects frozen by gc.freeze(), which cannot be listed"
    if not gc.isenabled():
        return "kept by a reference cycle, and the garbage collector is off: gc.enable(), or break the cycle"
    return (
        "a reference cycle that waits for the garbage collector, or held from C code" if names else "held from C code"
    )


def _registered_at_exit() -> int:
    # The list itself is in C, where the garbage collector does not look.
    atexit: Any = sys.modules.get("atexit")
    return atexit._ncallbacks() if real_type(atexit) is types.ModuleType else 0


def _group_equal(paths: list[ReferrerPath]) -> tuple[ReferrerPath, ...]:
    counts = Counter(_VARYING_PARTS.sub("[]", str(path)) for path in paths)
    first = {_VARYING_PARTS.sub("[]", str(path)): path for path in reversed(paths)}
    return tuple(_with_count(first[text], count) for text, count in counts.most_common())


def _with_count(path: ReferrerPath, count: int) -> ReferrerPath:
    return ReferrerPath(path.holders, count, path.is_rooted, path.hint, path.filling)


def _example(container: object) -> str:
    newest = newest_item(container)
    if newest is None:
        return ""
    key, value = newest
    if key is None and real_type(value) is bytes:
        return f"<{len(value):,} bytes>"  # the contents would not help to find the holder
    return key_text(value) if key is None else f"{key_text(key)}: {type_name(real_type(value))}"
