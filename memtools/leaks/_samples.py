"""Keep counters of any length of time in bounded room, without adding to what they count.

Covers: arrays of numbers, a handful of blocks however long it goes on; thinned out to half when they are full.
Leaves to others: reading (`memtools.readings`), judging (`memtools.analysis`).
"""

from array import array
from collections.abc import Iterator
from typing import Final

from memtools.readings import Counters

_MOST: Final = 2_048
_UNKNOWN: Final = -1
_GOLDEN: Final = 0.618034  # multiples of it are spread the most evenly


def uneven(mean_s: float) -> Iterator[float]:
    """Yield times to wait between two samples, about `mean_s` seconds, no two in a row the same.

    What is given back in step with the samples, once a second, say, would look like a slow rise.
    """
    share = 0.0
    while True:
        share = (share + _GOLDEN) % 1.0
        yield mean_s * (0.5 + share)


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
        rows = zip(self._at, *self._figures, strict=False)  # another thread may be adding one
        return [Counters(row[0], row[1], row[2], _known(row[3]), _known(row[4])) for row in rows if row[0] < at]

    def _thin_out(self) -> None:
        self._at[:] = self._at[::2]
        for figures in self._figures:
            figures[:] = array("q", map(min, figures[::2], figures[1::2]))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value
