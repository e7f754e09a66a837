"""Counters of a process over time, in little memory.

A file of its own because the process and its child processes are sampled alike.
"""

from array import array
from collections.abc import Iterator
from typing import Final

from memtools.readings._counters import Counters

_MAX_SAMPLES: Final = 2_048
_UNKNOWN: Final = -1
_GOLDEN: Final = 0.618034  # the golden ratio: its multiples modulo 1 are spread evenly


def jittered_intervals(mean_s: float) -> Iterator[float]:
    """Yield times to wait between two samples, about `mean_s` seconds, no two in a row equal.

    Memory that is freed in step with the samples, once a second for example, would look like a slow rise.
    """
    share = 0.0
    while True:
        share = (share + _GOLDEN) % 1.0
        yield mean_s * (0.5 + share)


class Samples:
    """Counters in order of time, at most 2,048, in a handful of arrays.

    When they are full, each two become one with the lower figure of both, since the verdict is about floors.
    """

    def __init__(self) -> None:
        self._at = array("d")
        self._figures = tuple(array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._at)

    def add(self, one: Counters) -> None:
        """Add the latest counters."""
        if len(self._at) >= _MAX_SAMPLES:
            self._downsample()
        self._at.append(one.at)
        known = (one.resident_bytes, one.blocks, one.malloc_bytes, one.traced_bytes)
        for figures, value in zip(self._figures, known, strict=True):
            figures.append(_UNKNOWN if value is None else value)

    def until(self, at: float) -> list[Counters]:
        """Return the counters that were taken before `at`, of `time.monotonic()`."""
        rows = zip(self._at, *self._figures, strict=False)  # another thread may be adding a row
        return [Counters(row[0], row[1], row[2], _known(row[3]), _known(row[4])) for row in rows if row[0] < at]

    def _downsample(self) -> None:
        self._at[:] = self._at[::2]
        for figures in self._figures:
            figures[:] = array("q", map(min, figures[::2], figures[1::2]))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value
