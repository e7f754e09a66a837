"""The clean-up steps that memtools brings: shrink, collect, trim the heap."""

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

from memtools._safe_calls import RateLimitedLogger
from memtools.cleanup._registry import (
    History,
    Registration,
    Shrinkable,
    Step,
    checked_bytes,
    largest_first,
    registrations,
    size_of,
)
from memtools.cleanup._statistics import ShrinkableStatistics, ShrinkStatistics
from memtools.readings import Level, resident_bytes, trim_heap
from memtools.units import parse_seconds

_MAX_EMPTY_SLICES: Final = 3  # in a row, for an object that is not finished and frees nothing

# Lateness in slices, not in seconds. On a busy machine a thread may wait for the GIL for several slices, which is not
# the object's fault.
_SLICES_LATE: Final = 10  # after the deadline: an object without `is_shrinking` is not called again in this pass
_SLICES_BLOCKED: Final = 100  # in one call: not called again in this pass, and counted as a failure

_SMALL_BYTES: Final = 4096
_MAX_FAILING: Final = 10  # objects in the statistics
_MAX_NAME_LENGTH: Final = 100

# A full collection takes 140 ns per container (measured on CPython 3.11 with lists of ints), and about every second
# block is a container: a dict comes with its keys and values.
_FIRST_ESTIMATE_S: Final = 70e-9

_WORTHWHILE_BYTES: Final = 8 << 20
_RETRY_AFTER_S: Final = 300.0  # a heap that had nothing to give may be fragmented by then

_log = logging.getLogger("memtools.cleanup")


def default_steps(
    *,
    read: Callable[[], int] = resident_bytes,
    slice_s: float = 0.005,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Step, ...]:
    """Return new steps, the cheapest first: shrink registered objects, collect young, collect all, trim the heap.

    Steps keep counters, so each reclaimer needs its own.

    Args:
        read: returns the memory in use, in bytes.
        slice_s: how long registered objects are asked to shrink before the event loop may run, in seconds.
        clock: monotonic seconds.

    Raises:
        ConfigError: if `slice_s` is not a number of seconds.
    """
    return (
        ShrinkRegistered(slice_s=slice_s, clock=clock),
        CollectYoung(read=read),
        CollectAll(read=read, clock=clock),
        TrimHeap(read=read, clock=clock),
    )


class ShrinkRegistered:
    """The step that calls `shrink` on every registered object, in slices.

    Args:
        slice_s: the length of a slice, in seconds. An object gets at least half of one.
        clock: monotonic seconds; the deadlines of `shrink` are by this clock.

    Raises:
        ConfigError: if `slice_s` is not a number of seconds.
    """

    name: str = "shrink registered"
    min_level: Level = Level.WARNING

    __slots__ = ("_calls", "_clock", "_failure_log", "_failures", "_overruns", "_slice_s")

    def __init__(self, *, slice_s: float = 0.005, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = parse_seconds(slice_s, name="slice_s")
        self._clock = clock
        self._failure_log = RateLimitedLogger(_log, clock=clock)
        self._calls = 0
        self._failures = 0
        self._overruns = 0

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Shrink all objects without a pause; return the freed bytes, as far as they are known."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Shrink all objects in slices; see `SlicedStep`."""
        time_slice = _TimeSlice(self._slice_s, self._clock, left)
        for registration in largest_first():
            while registration is not None and self._shrink_one(registration, level, time_slice):
                yield time_slice.end()
                if not time_slice.start():
                    return
            if time_slice.is_nearly_over():
                yield time_slice.end()
                if not time_slice.start():
                    return
        if time_slice.calls:
            yield time_slice.end()

    def statistics(self) -> ShrinkStatistics:
        """Return the counters of all calls so far."""
        now = self._clock()
        failing = [record for registration in registrations() if (record := _failing(registration, now)) is not None]
        failing.sort(key=lambda record: record.failures + record.overruns, reverse=True)
        return ShrinkStatistics(self._calls, self._failures, self._overruns, tuple(failing[:_MAX_FAILING]))

    def _shrink_one(self, registration: Registration, level: Level, time_slice: "_TimeSlice") -> bool:
        """Shrink one object; return whether to call it again in the next slice."""
        # The strong reference is held in this call only: between two slices the object may die or be unregistered.
        shrinkable = registration()
        if shrinkable is None or not registration.is_registered():
            return False
        began = self._clock()
        if registration.history is not None and registration.history.breaker.is_open(began):
            return False

        time_slice.calls += 1
        self._calls += 1
        try:
            freed_bytes = checked_bytes(shrinkable.shrink(level, time_slice.until))
            is_unfinished: object = getattr(shrinkable, "is_shrinking", None)
        except Exception:
            self._record_failure(shrinkable, _history_of(registration))
            return False

        ended = self._clock()
        time_slice.freed_bytes += freed_bytes
        _record_size(registration, freed_bytes, size_of(shrinkable))
        late_s = ended - time_slice.until
        if not self._record_time(registration, began, ended, late_s):
            return False
        if not isinstance(is_unfinished, bool):
            is_unfinished = freed_bytes > 0 and 0 <= late_s < _SLICES_LATE * self._slice_s
        return is_unfinished and time_slice.should_retry(freed_bytes)

    def _record_failure(self, shrinkable: Shrinkable, history: History) -> None:
        self._failures += 1
        history.failures += 1
        history.freed_bytes, history.size_bytes = 0, size_of(shrinkable)
        history.breaker.record_failure(self._clock())
        self._failure_log.error("failed", "%s failed to shrink; the other objects are asked", _name(shrinkable))

    def _record_time(self, registration: Registration, began: float, ended: float, late_s: float) -> bool:
        """Count a late return; return False if the call took so long that it counts as a failure."""
        if late_s > self._slice_s:
            self._overruns += 1
            _history_of(registration).overruns += 1
        if ended - began > _SLICES_BLOCKED * self._slice_s:
            _history_of(registration).breaker.record_failure(ended)
            return False
        if registration.history is not None:
            registration.history.breaker.record_success()
        return True


def timed_collect() -> float | None:
    """Collect all generations; return the pause in seconds, or None if a collection was running already.

    The pause is measured in `gc.callbacks`: it includes finalisers and weakref callbacks, but not waiting for the GIL.
    """
    timer = _GcTimer()
    gc.callbacks.append(timer)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(timer)
    return timer.pause_s


class _GcTimer:
    """Measures full collections of the thread that made it, as an entry of `gc.callbacks`."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._began = 0.0
        self.pause_s: float | None = None

    def __call__(self, phase: str, details: dict[str, int]) -> None:
        # Other threads may start collections of their own when foreign code in this thread releases the GIL.
        if details["generation"] != 2 or threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._began = perf_counter()
        else:
            self.pause_s = perf_counter() - self._began


class CollectYoung:
    """The step that collects the young generations: 0 at `NORMAL`, 0 and 1 above.

    Args:
        read: returns the memory in use, in bytes; the fall of this figure is reported as freed.
    """

    name: str = "collect young"
    min_level: Level = Level.NORMAL

    __slots__ = ("_read",)

    def __init__(self, *, read: Callable[[], int] = resident_bytes) -> None:
        self._read = read

    def __call__(self, level: Level, _deadline: float, /) -> int:
        """Collect in a millisecond or two; return by how many bytes usage fell."""
        before = self._read()
        gc.collect(0 if level < Level.WARNING else 1)
        return max(before - self._read(), 0)


class CollectAll:
    """The step that collects all generations, if the time is enough for it.

    A full collection cannot be interrupted, and it stops every thread: for 140 ms per million containers, measured on
    CPython 3.11. The step estimates the pause from the last one, in seconds per allocated block, and does nothing if
    the budget does not cover it.

    Args:
        read: returns the memory in use, in bytes; the fall of this figure is reported as freed.
        clock: monotonic seconds.
        count: returns the number of allocated blocks.
        collect: collects everything and returns the pause in seconds, or None if another thread is collecting.
    """

    name: str = "collect all"
    min_level: Level = Level.WARNING

    __slots__ = ("_clock", "_collect", "_count", "_read", "_s_per_block")

    def __init__(
        self,
        *,
        read: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[], int] = sys.getallocatedblocks,
        collect: Callable[[], float | None] = timed_collect,
    ) -> None:
        self._read = read
        self._clock = clock
        self._count = count
        self._collect = collect
        self._s_per_block = _FIRST_ESTIMATE_S

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Collect, if the estimated pause ends by `deadline`; return by how many bytes usage fell."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, _level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Collect in one slice, or in none if there is too little time; see `SlicedStep`."""
        blocks = self._count()
        if blocks * self._s_per_block > left():
            return

        before = self._read()
        pause_s = self._collect()
        if pause_s is None:
            return
        self._s_per_block = pause_s / max(blocks, 1)
        yield max(before - self._read(), 0)


class TrimHeap:
    """The step that returns free pages of the heap to the system; at `CRITICAL` only, because it holds the GIL.

    A trim that freed less than 8 MiB is not repeated for five minutes. A trim does not start if the last one took
    longer than the time that is left.

    Args:
        read: returns the memory in use, in bytes; the fall of this figure is reported as freed.
        clock: monotonic seconds.
        trim: returns the pages, and whether this platform has a function for it.
    """

    name: str = "trim heap"
    min_level: Level = Level.CRITICAL

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
        """Trim, if it is likely to be worthwhile; return by how many bytes usage fell."""
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
        freed_bytes = max(before - self._read(), 0)
        ended = self._clock()
        self._last_s = ended - began
        if freed_bytes < _WORTHWHILE_BYTES:
            self._not_before = ended + _RETRY_AFTER_S
        yield freed_bytes


class _TimeSlice:
    """The current slice of a step, and the bytes that were freed in it.

    Attributes:
        until: the end of the slice, by the clock.
        calls: calls of `shrink` in all slices.
        freed_bytes: bytes freed in this slice.
    """

    __slots__ = ("_clock", "_empty_slices", "_left", "_slice_s", "calls", "freed_bytes", "until")

    def __init__(self, slice_s: float, clock: Callable[[], float], left: Callable[[], float]) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._left = left
        self._empty_slices = 0
        self.calls = 0
        self.freed_bytes = 0
        self.until = clock() + slice_s
        self.start()

    def start(self) -> bool:
        """Start the next slice; return whether there is time for one."""
        left_s = self._left()
        self.until = self._clock() + min(self._slice_s, left_s)
        return left_s > 0

    def end(self) -> int:
        """Return the bytes that were freed in this slice."""
        freed_bytes, self.freed_bytes = self.freed_bytes, 0
        return freed_bytes

    def is_nearly_over(self) -> bool:
        """Return whether less than half of the slice is left: too little to call the next object."""
        return self.until - self._clock() < self._slice_s / 2

    def should_retry(self, freed_bytes: int) -> bool:
        """Return whether to call an unfinished object again that freed `freed_bytes`."""
        self._empty_slices = 0 if freed_bytes else self._empty_slices + 1
        if self._empty_slices < _MAX_EMPTY_SLICES:
            return True
        self._empty_slices = 0
        return False


def _history_of(registration: Registration) -> History:
    if registration.history is None:
        registration.history = History()
    return registration.history


def _record_size(registration: Registration, freed_bytes: int, size_bytes: int) -> None:
    # No history is kept of the many small objects that freed nothing: memory is short, and they come last anyway.
    if registration.history is None and not freed_bytes and size_bytes < _SMALL_BYTES:
        return
    history = _history_of(registration)
    history.freed_bytes, history.size_bytes = freed_bytes, size_bytes


def _failing(registration: Registration, now: float) -> ShrinkableStatistics | None:
    shrinkable, history = registration(), registration.history
    if shrinkable is None or history is None or not (history.failures or history.overruns):
        return None
    return ShrinkableStatistics(_name(shrinkable), history.failures, history.overruns, history.breaker.is_open(now))


def _name(shrinkable: object) -> str:
    kind = f"{type(shrinkable).__module__}.{type(shrinkable).__qualname__}"
    try:
        own = getattr(shrinkable, "name", None)
    except Exception:
        return kind
    return f"{kind} {own[:_MAX_NAME_LENGTH]!r}" if isinstance(own, str) else kind
