"""Ask the registered things to shrink, one after the other, in slices.

Covers: the time that each gets, asking again what could not finish, what raises, returns late or keeps failing.
Leaves to others: who is registered (`_register`), in which order (`_order`), what shrinking means (the thing itself).
"""

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from time import perf_counter

from memtools._safe_calls import RateLimitedLogger
from memtools.cleanup._registry import Past, Place, Shrinkable, Step, in_order, known_bytes, places, size_of
from memtools.cleanup._statistics import ShrinkableStatistics, ShrinkStatistics
from memtools.readings import Level, resident_bytes, trim_heap
from memtools.units import parse_seconds

# How long the garbage collector stopped the world.
#
# Leaves to others: when to collect (`_collect`).


class _Watch:
    """Called by the collector at the start and at the end of each collection."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._began = 0.0
        self.pause_s: float | None = None

    def __call__(self, phase: str, details: dict[str, int]) -> None:
        # Other threads may begin collections of their own, when foreign code in this one lets go of the GIL.
        if details["generation"] != 2 or threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._began = perf_counter()
        else:
            self.pause_s = perf_counter() - self._began


def collect_measured() -> float | None:
    """Collect all generations; return the pause in seconds, or None where a collection was already going on.

    Measured by `gc.callbacks`: finalisers and callbacks that run within are part of it, waiting for the GIL is not.
    """
    watch = _Watch()
    gc.callbacks.append(watch)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(watch)
    return watch.pause_s


# Have the garbage collector look for circles: a little, or everywhere when that can be afforded.
#
# Covers: the price of a full collection, measured and foretold.
# Leaves to others: what may be spent (`_ladder`), what becomes of the pages (`_trim_heap`).
#
# A full collection cannot be interrupted, stalls every thread, and takes 140 ms per million containers (measured on
# CPython 3.11, lists of ints). So it is taken only when the share of wall time allows for all of it.

# Half of the 140 ns per container: of all blocks, about every other is a container (a dict with its keys and values).
_FIRST_GUESS_S = 70e-9


class CollectYoung:
    """The step that collects the young generations: 0 at `NORMAL`, 0 and 1 above.

    Args:
        read: returns what is in use, in bytes; what it falls by is taken for given back.
    """

    name: str = "collect young"
    least: Level = Level.NORMAL

    __slots__ = ("_read",)

    def __init__(self, *, read: Callable[[], int] = resident_bytes) -> None:
        self._read = read

    def __call__(self, level: Level, _deadline: float, /) -> int:
        """Collect; return by how many bytes usage fell. It is over in a millisecond or two."""
        before = self._read()
        gc.collect(0 if level < Level.WARNING else 1)
        return max(before - self._read(), 0)


class CollectAll:
    """The step that collects all generations, when there is time enough for it.

    Its price is foretold from the last one: pause by number of allocated blocks.

    Args:
        read: returns what is in use, in bytes; what it falls by is taken for given back.
        clock: monotonic seconds.
        count: returns how many blocks are allocated.
        collect: collects everything and returns the pause in seconds, or None where another thread was at it already.
    """

    name: str = "collect all"
    least: Level = Level.WARNING

    __slots__ = ("_clock", "_collect", "_count", "_price_s", "_read")

    def __init__(
        self,
        *,
        read: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[], int] = sys.getallocatedblocks,
        collect: Callable[[], float | None] = collect_measured,
    ) -> None:
        self._read = read
        self._clock = clock
        self._count = count
        self._collect = collect
        self._price_s = _FIRST_GUESS_S

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Collect, if that can be done by `deadline`; return by how many bytes usage fell."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, _level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Collect in one slice, or in none where there is too little time; see `SlicedStep`."""
        blocks = self._count()
        if blocks * self._price_s > left():
            return

        before = self._read()
        pause_s = self._collect()
        if pause_s is None:
            return
        self._price_s = pause_s / max(blocks, 1)
        yield max(before - self._read(), 0)


_PATIENCE = 3  # slices in a row in which a thing that is not done may give nothing
# Slices. On a busy machine a thread may wait for its turn for some of them, which is not the thing's fault.
_TOO_LATE = 10  # after its deadline; what does not say whether it is done is not asked again in this climb
_BLOCKED = 100  # in all; not asked again in this climb, and it counts as a failure
_SMALL_BYTES = 4096
_SHOWN = 10  # things in trouble
_NAME_AT_MOST = 100  # characters

_log = logging.getLogger("memtools.cleanup")


class ShrinkRegistered:
    """The step that asks every registered thing to `shrink`.

    Args:
        slice_s: how long a slice lasts, in seconds. A thing gets at least half of one.
        clock: monotonic seconds; `shrink` is given deadlines by it.

    Raises:
        ConfigError: for a slice that is not a number of seconds.
    """

    name: str = "trim"
    least: Level = Level.WARNING

    __slots__ = ("_asked", "_clock", "_failures", "_overruns", "_failure_log", "_slice_s")

    def __init__(self, *, slice_s: float = 0.005, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = parse_seconds(slice_s, name="slice_s")
        self._clock = clock
        self._failure_log = RateLimitedLogger(_log)
        self._asked = 0
        self._failures = 0
        self._overruns = 0

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Ask all, without a pause; return the bytes given back, as far as they are known."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Ask all, in slices; see `SlicedStep`."""
        part = _Slice(self._slice_s, self._clock, left)
        for place in in_order():
            while place is not None and self._ask(place, level, part):
                yield part.end()
                if not part.begin():
                    return
            if part.is_nearly_over():
                yield part.end()
                if not part.begin():
                    return
        if part.asked:
            yield part.end()

    def statistics(self) -> ShrinkStatistics:
        """Return how asking fared so far."""
        now = self._clock()
        troubled = [told for place in places() if (told := _trouble(place, now)) is not None]
        troubled.sort(key=lambda thing: thing.failures + thing.overruns, reverse=True)
        return ShrinkStatistics(self._asked, self._failures, self._overruns, tuple(troubled[:_SHOWN]))

    def _ask(self, place: Place, level: Level, part: "_Slice") -> bool:
        """Ask one thing; return whether to ask it again in the next slice."""
        # Held here only: between two slices it may die, leave the register or be changed.
        thing = place()
        if thing is None or not place.is_taken():
            return False
        began = self._clock()
        if place.past is not None and place.past.breaker.is_open(began):
            return False

        part.asked += 1
        self._asked += 1
        try:
            gained_bytes = known_bytes(thing.shrink(level, part.until))
            says: object = getattr(thing, "is_shrinking", None)
        except Exception:
            self._fail(thing, _past_of(place))
            return False

        ended = self._clock()
        part.freed_bytes += gained_bytes
        _remember(place, gained_bytes, size_of(thing))
        late_s = ended - part.until
        if self._has_blocked(place, began, ended, late_s):
            return False
        if not isinstance(says, bool):
            says = gained_bytes > 0 and 0 <= late_s < _TOO_LATE * self._slice_s
        return says and part.has_patience(gained_bytes)

    def _fail(self, thing: Shrinkable, past: Past) -> None:
        now = self._clock()
        self._failures += 1
        past.failures += 1
        past.gained_bytes, past.size_bytes = 0, size_of(thing)
        past.breaker.record_failure(now)
        self._failure_log.error("failed", "%s could not shrink; the others are asked all the same", _name(thing))

    def _has_blocked(self, place: Place, began: float, ended: float, late_s: float) -> bool:
        if late_s > self._slice_s:
            self._overruns += 1
            _past_of(place).overruns += 1
        has_blocked = ended - began > _BLOCKED * self._slice_s
        if has_blocked:
            _past_of(place).breaker.record_failure(ended)
        elif place.past is not None:
            place.past.breaker.record_success()
        return has_blocked


class _Slice:
    """One slice of time, and the next, and what was given back in each."""

    __slots__ = ("_clock", "_idle", "_left", "_slice_s", "asked", "freed_bytes", "until")

    def __init__(self, slice_s: float, clock: Callable[[], float], left: Callable[[], float]) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._left = left
        self._idle = 0
        self.asked = 0
        self.freed_bytes = 0
        self.until = clock() + slice_s
        self.begin()

    def begin(self) -> bool:
        """Begin the next slice; return whether there is time for one."""
        left_s = self._left()
        self.until = self._clock() + min(self._slice_s, left_s)
        return left_s > 0

    def end(self) -> int:
        """Return what was given back in this slice, in bytes."""
        freed_bytes, self.freed_bytes = self.freed_bytes, 0
        return freed_bytes

    def is_nearly_over(self) -> bool:
        """Whether less than half of it is left: too little to ask the next thing."""
        return self.until - self._clock() < self._slice_s / 2

    def has_patience(self, gained_bytes: int) -> bool:
        """Whether to go on with a thing that is not done and gave `gained_bytes`."""
        self._idle = 0 if gained_bytes else self._idle + 1
        if self._idle < _PATIENCE:
            return True
        self._idle = 0
        return False


def _past_of(place: Place) -> Past:
    if place.past is None:
        place.past = Past()
    return place.past


def _remember(place: Place, gained_bytes: int, size_bytes: int) -> None:
    # Nothing is kept of the many that are small and gave nothing: memory is short, and they come last anyway.
    if place.past is None and not gained_bytes and size_bytes < _SMALL_BYTES:
        return
    past = _past_of(place)
    past.gained_bytes, past.size_bytes = gained_bytes, size_bytes


def _trouble(place: Place, now: float) -> ShrinkableStatistics | None:
    thing, past = place(), place.past
    if thing is None or past is None or not (past.failures or past.overruns):
        return None
    return ShrinkableStatistics(_name(thing), past.failures, past.overruns, past.breaker.is_open(now))


def _name(thing: object) -> str:
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    try:
        own = getattr(thing, "name", None)
    except Exception:
        return kind
    return f"{kind} {own[:_NAME_AT_MOST]!r}" if isinstance(own, str) else kind


# Have the C library hand its free pages back, when that is worth the pause.
#
# Covers: leaving it out while it gives little.
# Leaves to others: how it is done (`memtools.readings`).

_WORTH_BYTES = 8 << 20
_RETRY_AFTER_S = 300.0  # a heap that had nothing to give may have become fragmented since


class TrimHeap:
    """The step that hands free pages of the heap back to the system; at `CRITICAL` only, as it holds the GIL.

    When it gave less than 8 MiB it is left out for five minutes, and it is not begun where the last one took longer
    than there is time now.

    Args:
        read: returns what is in use, in bytes; what it falls by is taken for given back.
        clock: monotonic seconds.
        trim: hands the pages back and returns whether there was a way to do it.
    """

    name: str = "trim heap"
    least: Level = Level.CRITICAL

    __slots__ = ("_clock", "_last_s", "_not_before", "_read", "_trim")

    def __init__(
        self,
        *,
        read: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
        trim: Callable[[], bool] = trim_heap,
    ) -> None:
        self._read = read
        self._clock = clock
        self._trim = trim
        self._last_s = 0.0
        self._not_before = float("-inf")

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Trim, if it is worth it; return by how many bytes usage fell."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, _level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Trim in one slice, or in none; see `SlicedStep`."""
        began = self._clock()
        if began < self._not_before or self._last_s > left():
            return

        before = self._read()
        if not self._trim():
            self._not_before = float("inf")
            return
        gained_bytes = max(before - self._read(), 0)
        ended = self._clock()
        self._last_s = ended - began
        if gained_bytes < _WORTH_BYTES:
            self._not_before = ended + _RETRY_AFTER_S
        yield gained_bytes


# The steps of the house, in the order of their price.
#
# Leaves to others: taking them (`_ladder`).


def default_steps(
    *,
    read: Callable[[], int] = resident_bytes,
    slice_s: float = 0.005,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Step, ...]:
    """Return new steps: ask what is registered, collect the young, collect all, hand free pages back.

    Steps remember how they fared: give each ladder its own.

    Args:
        read: returns what is in use, in bytes.
        slice_s: how long registered things are asked before others have their turn, in seconds.
        clock: monotonic seconds.

    Raises:
        ConfigError: for a slice that is not a number of seconds.
    """
    return (
        ShrinkRegistered(slice_s=slice_s, clock=clock),
        CollectYoung(read=read),
        CollectAll(read=read, clock=clock),
        TrimHeap(read=read, clock=clock),
    )
