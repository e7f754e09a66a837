"""Keep counters of any length of time in bounded room, without adding to what they count.

Covers: arrays of numbers, which are a handful of blocks however long it goes on; thinned out to half when they are full.
Leaves to others: reading (`memtools.readings`), judging (`memtools.analysis`).
"""

from array import array
from typing import Final

from memtools.readings import Counters

_MOST: Final = 2_048
_UNKNOWN: Final = -1


class Samples:
    """Counters in order of time, at most 2,048 of them.

    When they are full, two become one that has the lower figure of both: floors are what is judged.
    """

    def __init__(self) -> None:
        self._at = array("d")
        self._figures = tuple(array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._at)

    def add(self, one: Counters) -> None:
        """Add the latest counters."""
        if len(self._at) >= _MOST:
            self._thin_out()
        self._at.append(one.at)
        known = (one.resident_bytes, one.blocks, one.malloc_bytes, one.traced_bytes)
        for figures, value in zip(self._figures, known, strict=True):
            figures.append(_UNKNOWN if value is None else value)

    def until(self, at: float) -> list[Counters]:
        """Return the counters that were taken before `at`, of `time.monotonic()`."""
        rows = zip(self._at, *self._figures, strict=True)
        return [Counters(row[0], row[1], row[2], _known(row[3]), _known(row[4])) for row in rows if row[0] < at]

    def last_at(self) -> float:
        """Return when the latest ones were taken, 0 where there are none."""
        return self._at[-1] if self._at else 0.0

    def _thin_out(self) -> None:
        self._at[:] = self._at[::2]
        for figures in self._figures:
            figures[:] = array("q", map(min, figures[::2], figures[1::2]))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value
