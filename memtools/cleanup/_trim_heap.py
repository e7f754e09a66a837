"""Have the C library hand its free pages back, when that is worth the pause.

Covers: leaving it out while it gives little.
Leaves to others: how it is done (`memtools.readings`).
"""

import time
from collections.abc import Callable, Iterator

from memtools.readings import Level, resident_bytes, trim_heap

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
