"""Resident memory of a program while it runs, for the page of its report.

The thread is one that `threading` does not know: the program's own counts and lists of threads do not change, and its
end does not wait for it. It ends before each fork and begins again afterwards, since Python warns of a fork beside
other threads.
"""

import os
import time
from _thread import allocate_lock, get_native_id, start_new_thread  # the originals: gevent replaces those of the module
from collections.abc import Sequence
from time import sleep
from typing import Final

from memtools._records import record
from memtools._threads import disregard_thread
from memtools.errors import ReadingError
from memtools.readings import effective_limit, resident_bytes
from memtools.reports._timeline_chart import EventFields

_MAX_SAMPLES: Final = 1024
_FIRST_INTERVAL_S: Final = 0.05
_STOP_TIMEOUT_S: Final = 1.0


@record
class Sample:
    """One reading, or some readings in a row, with what a chart shows of them."""

    at_s: float
    duration_s: float
    count: int
    lowest_bytes: int
    mean_bytes: int
    highest_bytes: int


@record
class ProgramTimeline:
    """What a chart is drawn from.

    Attributes:
        samples: the readings, oldest first.
        events: none so far.
        limit_bytes: what the process may use at its end; None if unknown.
    """

    samples: tuple[Sample, ...]
    events: tuple[EventFields, ...]
    limit_bytes: int | None


class BackgroundSamples:
    """Samples from `start()` to `stop()`, at most 1,024: when they are full, each two become one.

    Args:
        interval_s: seconds between two readings at first; it doubles each time the samples are full.
    """

    def __init__(self, interval_s: float = _FIRST_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._samples: list[Sample] = []
        self._wanted = False
        self._process = os.getpid()
        self._wake = allocate_lock()
        self._done = allocate_lock()
        self._native_id = 0

    def start(self) -> None:
        """Begin; a program that cannot start a thread has no samples."""
        self._wanted = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._pause, after_in_parent=self._resume)
        self._resume()

    def stop(self) -> ProgramTimeline:
        """End, and return the samples."""
        self._pause()
        self._wanted = False
        self._sample()
        limit = effective_limit().value_bytes
        return ProgramTimeline(tuple(self._samples), (), limit)

    def _resume(self) -> None:
        if not self._wanted or os.getpid() != self._process or self._done.locked():
            return
        self._wake.acquire(blocking=False)
        self._done.acquire()
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # no thread is left
            self._done.release()

    def _pause(self) -> None:
        if os.getpid() != self._process or not self._done.locked():
            return
        if self._wake.locked():
            self._wake.release()
        if not self._done.acquire(timeout=_STOP_TIMEOUT_S):
            return
        self._done.release()
        # The system counts the thread until it has ended, too.
        path, until = f"/proc/self/task/{self._native_id}", time.monotonic() + _STOP_TIMEOUT_S
        while self._native_id and os.path.exists(path) and time.monotonic() < until:
            sleep(0)

    def _run(self) -> None:
        disregard_thread()
        self._native_id = get_native_id()
        try:
            while not self._wake.acquire(timeout=self._interval_s):
                self._sample()
        finally:
            self._done.release()

    def _sample(self) -> None:
        try:
            used = resident_bytes()
        except ReadingError:  # no descriptor is left
            return
        self._samples.append(Sample(time.time(), 0.0, 1, used, used, used))
        if len(self._samples) >= _MAX_SAMPLES:
            self._samples = merged_by_pairs(self._samples)
            self._interval_s *= 2


def merged_by_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """Return each two samples as one; the last one stays as it is where their number is odd."""
    merged = [_merged(samples[place], samples[place + 1]) for place in range(0, len(samples) - 1, 2)]
    return [*merged, samples[-1]] if len(samples) % 2 else merged


def _merged(one: Sample, other: Sample) -> Sample:
    count = one.count + other.count
    mean = (one.mean_bytes * one.count + other.mean_bytes * other.count) // count
    lowest, highest = min(one.lowest_bytes, other.lowest_bytes), max(one.highest_bytes, other.highest_bytes)
    return Sample(one.at_s, other.at_s + other.duration_s - one.at_s, count, lowest, mean, highest)
