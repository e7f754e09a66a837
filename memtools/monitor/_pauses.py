"""Measure how long the garbage collector stops everybody.

Covers: one hook in `gc.callbacks`, only while a monitor is started.

The hook runs inside the collection, in whatever thread set it off: it adds up three figures and nothing more. One
collection runs at a time, so there is no lock.
"""

import gc
from time import perf_counter

from memtools.monitor._statistics import CollectorPauses


class PauseMeter:
    """Adds up pauses between `start` and `stop`."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._pauses = 0
        self._total_s = 0.0
        self._longest_s = 0.0

    def start(self) -> None:
        """Begin to listen to the collector; a second call does nothing."""
        if self._hear not in gc.callbacks:
            gc.callbacks.append(self._hear)

    def stop(self) -> None:
        """Listen no more."""
        if self._hear in gc.callbacks:
            gc.callbacks.remove(self._hear)
        self._began = None

    def statistics(self) -> CollectorPauses:
        """Return the figures so far."""
        return CollectorPauses(self._pauses, self._total_s, self._longest_s)

    def _hear(self, phase: str, _: dict[str, int]) -> None:
        now = perf_counter()
        if phase == "start":
            self._began = now
            return
        if self._began is None:
            return
        took = now - self._began
        self._began = None
        self._pauses += 1
        self._total_s += took
        self._longest_s = max(self._longest_s, took)
