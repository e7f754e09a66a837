"""Say who keeps something alive: `why_alive`.

Covers: samples of what was asked about, a climb for all of them at once, equal ways told once with their number, the
hint that belongs to them; for services with pauses between the walks over the heap.
Leaves to others: finding what grows (`growing`), the walk (`_climbing`), the words (`_naming`, `_hints`).

Threads: safe from any; other threads go on between the walks. Never call it in a signal handler: it would run in the
middle of any line. No object that is looked at has a method of its own called, and none is held afterwards.
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
from memtools.heap._census import HeapGrowth, at_addresses, is_weak_inside, newest_in, newest_of, type_called
from memtools.heap._describe import filling, hint_for, name_thing, name_way
from memtools.heap._inspect import class_of, is_one_of, key_text, length_of, type_name
from memtools.heap._referrers import MOST_SAMPLES, Climb, variable_of_running_frame
from memtools.units import parse_count, parse_seconds

_MANY_AT_EXIT: Final = 64  # few programs register ten
_MANY_FROZEN: Final = 1000  # Python 3.12 and later set some hundreds aside themselves

# Keys, indices, lines and the names of tasks and threads: what differs between ways that are the same.
_PLACES: Final = re.compile(r"\[[^\]]*\]| at line [0-9]+|'[^']*'")


@record
class ReferrerPath:
    """One way in which samples are kept alive.

    Attributes:
        holders: who holds, the nearest first, the root last.
        count: how many samples are held in this way; keys and indices may differ.
        is_rooted: whether the last holder is a root (a module, class, frame, coroutine, thread or loop).
        hint: what this usually means, empty where nothing is known.
        filling: the bounded cache on the way that is not full yet, in words; empty where there is none.
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
    """Who keeps something alive.

    Attributes:
        what: what was asked about.
        alive: how many there are of it.
        example: a key or item of a container, empty for all else.
        ways: how the samples are held, the most frequent way first; empty where nothing is alive.
        growth: how fast it grows, if that was asked.
        is_complete: False where the time ran out before a root was found.
    """

    what: str
    alive: int
    example: str
    ways: tuple[ReferrerPath, ...]
    growth: HeapGrowth | None = None
    is_complete: bool = True

    @property
    def hint(self) -> str:
        """What the most frequent way usually means."""
        return self.ways[0].hint if self.ways else ""

    def __str__(self) -> str:
        subject = str(self.growth) if self.growth is not None else f"{self.what} ({self.alive:,} alive)"
        if not self.ways:
            return f"{subject}: nothing of it is alive"
        lines = [f"{subject} <- {self.ways[0]}{' | ' + self.hint if self.hint else ''}"]
        lines += [f"  {way.count} more <- {way}{' | ' + way.hint if way.hint else ''}" for way in self.ways[1:]]
        lines += ["  (time ran out before every root was found)"] if not self.is_complete else []
        return "\n".join(lines)


def why_alive(target: object, *, samples: int = 8, timeout: float = 2.0) -> WhyAlive:
    """Return who keeps `target` alive.

    Args:
        target: an object; or a class, meaning its youngest instances; or a `Growing`, as `growing` returns it.
        samples: how many instances of a class are looked at, at most 24.
        budget_s: seconds after which no further walk over the heap is begun.

    Raises:
        ConfigError: for arguments that make no sense.
    """
    steps = answer_in_steps(target, samples=samples, timeout=timeout)
    while (answer := next(steps)) is None:
        pass
    return answer


async def why_alive_async(target: object, *, samples: int = 8, timeout: float = 2.0, pause: float = 0.0) -> WhyAlive:
    """Return the same as `why_alive`, with the event loop given its turn between the walks over the heap.

    Args:
        target: see `why_alive`.
        samples: see `why_alive`.
        budget_s: see `why_alive`; pauses count.
        pause_s: how long to pause between two walks, in seconds.

    Raises:
        ConfigError: for arguments that make no sense.
    """
    parse_seconds(pause, name="pause_s")
    for answer in answer_in_steps(target, samples=samples, timeout=timeout):
        if answer is not None:
            return answer
        await asyncio.sleep(pause)
    raise AssertionError("unreachable: the last step is the answer")


def answer_in_steps(target: Any, *, samples: int = 8, timeout: float = 2.0) -> Iterator[WhyAlive | None]:
    """Climb, yielding None after each walk over the heap and the answer at the end; for who does the pausing himself.

    Args:
        target: see `why_alive`; any object.
        samples: see `why_alive`.
        budget_s: see `why_alive`; pauses count.

    Raises:
        ConfigError: for arguments that make no sense, at the first step.
    """
    if parse_count(samples, name="samples") > MOST_SAMPLES:
        raise ConfigError("samples", samples, f"a whole number from 1 to {MOST_SAMPLES}")
    deadline = time.monotonic() + parse_seconds(timeout, name="budget_s")
    found, alive, what, growth = _samples_of(target, samples)
    yield None

    climb = Climb(found, unseen=(found,))
    is_complete = True
    for _ in climb.walk():
        yield None
        if time.monotonic() > deadline:
            is_complete = all(climb.way(one) for one in found)
            break
    ways = _cluster([_told(climb, one) for one in found])
    example = _example(found[0]) if growth is not None and found else ""
    climb.drop()
    found.clear()
    yield WhyAlive(what, alive, example, ways, growth, is_complete)


def paths_to(things: list[Any], *, timeout: float = 2.0) -> tuple[ReferrerPath, ...]:  # Any: strangers
    """Return how each of a few objects is kept alive, in their order, by one climb for all of them.

    Args:
        things: at most 24; that this very list refers to them is not told.
        budget_s: seconds after which no further walk over the heap is begun.

    Raises:
        ConfigError: for more than 24.
    """
    if len(things) > MOST_SAMPLES:
        raise ConfigError("things", len(things), f"at most {MOST_SAMPLES} objects")
    deadline = time.monotonic() + parse_seconds(timeout, name="budget_s")
    climb = Climb(things, unseen=(things,))
    for _ in climb.walk():
        if time.monotonic() > deadline:
            break
    told = tuple(_told(climb, thing) for thing in things)
    climb.drop()
    return told


def _samples_of(target: Any, most: int) -> tuple[list[Any], int, str, HeapGrowth | None]:
    if class_of(target) is not HeapGrowth:
        if issubclass(class_of(target), type):
            found, alive = newest_of(target, most)
            return found, alive, type_name(target), None
        return [target], 1, name_thing(target), None
    if target.address:
        found = [one for one in at_addresses({target.address: target}) if not is_weak_inside(one)]
        return found, length_of(found[0]) if found else 0, target.type_name, target
    cls = type_called(target.type_name)
    found, alive = newest_of(cls, most) if cls is not None else ([], 0)
    return found, alive, target.type_name, target


def _told(climb: Climb, sample: object) -> ReferrerPath:
    way = climb.way(sample)
    if way:
        names = name_way(way, climb.module_name(way[-1]))
        return ReferrerPath(names or (name_thing(sample),), 1, True, hint_for(way, names), filling(way))
    way = climb.farthest(sample)
    names = name_way(way, None)
    variable = variable_of_running_frame(way[-1])
    if variable:
        names = (*names, variable)
        return ReferrerPath(names, 1, True, hint_for(way, names), filling(way))
    return ReferrerPath(names, 1, False, hint_for(way, names) or _hint_without_root(way, names), filling(way))


def _hint_without_root(way: Sequence[object], names: tuple[str, ...]) -> str:
    registered = _registered_at_exit()
    if registered >= _MANY_AT_EXIT and is_one_of(class_of(way[-1]), (types.MethodType, types.FunctionType, partial)):
        return f"held from C code, and atexit has {registered:,} functions: unregister what is registered at exit"
    frozen = gc.get_freeze_count()
    if frozen >= _MANY_FROZEN:
        return f"perhaps held by one of {frozen:,} objects that gc.freeze() has set aside: nobody can list those"
    if not gc.isenabled():
        return "only a cycle keeps it, and the collector is off: gc.enable(), or break the cycle"
    return "a cycle that waits for the collector, or held from C code" if names else "held from C code"


def _registered_at_exit() -> int:
    # The list itself is in C, where the collector does not look.
    atexit: Any = sys.modules.get("atexit")
    return atexit._ncallbacks() if class_of(atexit) is types.ModuleType else 0


def _cluster(ways: list[ReferrerPath]) -> tuple[ReferrerPath, ...]:
    counts = Counter(_PLACES.sub("[]", str(way)) for way in ways)
    first = {_PLACES.sub("[]", str(way)): way for way in reversed(ways)}
    return tuple(_counted(first[text], count) for text, count in counts.most_common())


def _counted(way: ReferrerPath, count: int) -> ReferrerPath:
    return ReferrerPath(way.holders, count, way.is_rooted, way.hint, way.filling)


def _example(container: object) -> str:
    newest = newest_in(container)
    if newest is None:
        return ""
    key, value = newest
    if key is None and class_of(value) is bytes:
        return f"<{len(value):,} bytes>"  # what is in them says nothing
    return key_text(value) if key is None else f"{key_text(key)}: {type_name(class_of(value))}"
