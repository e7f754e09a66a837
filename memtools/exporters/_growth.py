"""How much scopes, calls and tasks had left alive when they ended, sorted into buckets.

Leaves to others: who ended (`_heard`), the form in which a library wants it.
"""

from bisect import bisect_left
from itertools import accumulate

from memtools.records import record


@record
class Growth:
    """The growth of the owners of one label, up to one moment.

    Attributes:
        counts: how many had grown by no more than each bound, and how many there were in all: cumulative.
        sum_bytes: what they left alive together.
    """

    counts: tuple[int, ...]
    sum_bytes: int


class Buckets:
    """Running counts behind a `Growth`; the caller sees to threads."""

    __slots__ = ("_bounds", "_counts", "_sum_bytes")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_bytes = 0

    def add(self, grown_bytes: int) -> None:
        """Count one that grew by `grown_bytes`, never negative."""
        self._counts[bisect_left(self._bounds, grown_bytes)] += 1
        self._sum_bytes += grown_bytes

    def growth(self) -> Growth:
        """Return the counts up to now."""
        return Growth(tuple(accumulate(self._counts)), self._sum_bytes)
