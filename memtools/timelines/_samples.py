"""A run of readings in constant memory: the recent ones whole, the older ones merged.

Merging keeps the number of the readings, the lowest, the highest and the mean of them: no peak and no floor is lost. A
row takes 56 bytes, and a run of any length at most 0.9 MiB.
"""

from array import array
from collections.abc import Iterator
from typing import Final, TypeAlias

from memtools._records import as_dict, record

# The seconds that one row stands for (0: a single reading), and how many rows are kept: an hour at a reading every 5 s,
# a week of minutes, four weeks of quarters of an hour, a year of quarters of a day.
TIERS: Final[tuple[tuple[float, int], ...]] = ((0.0, 720), (60.0, 10_080), (900.0, 2_688), (21_600.0, 1_460))

# When, duration, count, lowest, mean, highest, blocks. A double holds whole numbers up to 2**53, which is 8 PiB.
Row: TypeAlias = tuple[float, float, float, float, float, float, float]
WIDTH: Final = 7
UNKNOWN: Final = -1.0
_AT, _DURATION, _COUNT, _LOWEST, _MEAN, _HIGHEST, _BLOCKS = range(WIDTH)


@record
class Sample:
    """One reading, or some readings in a row that were merged.

    Attributes:
        at_s: when the first of them was taken, in seconds since the epoch.
        duration_s: seconds from the first to the last; 0.0 for a single reading.
        count: how many readings it stands for.
        lowest_bytes: the lowest resident memory of them.
        mean_bytes: the mean of them.
        highest_bytes: the highest of them.
        blocks: the fewest blocks that Python's allocators had handed out (`sys.getallocatedblocks()`); None if unknown.
    """

    at_s: float
    duration_s: float
    count: int
    lowest_bytes: int
    mean_bytes: int
    highest_bytes: int
    blocks: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


class Tier:
    """Rows of one resolution, oldest first.

    Args:
        width_s: the seconds that one row stands for; 0 for a single reading.
        capacity: how many rows are kept; of the next one on, the oldest is taken out.
    """

    __slots__ = ("capacity", "rows", "width_s")

    def __init__(self, width_s: float, capacity: int) -> None:
        self.width_s = width_s
        self.capacity = capacity
        self.rows = array("d")

    def __len__(self) -> int:
        return len(self.rows) // WIDTH

    def append(self, row: Row) -> None:
        """Add a row as it is."""
        self.rows.extend(row)

    def merge(self, row: Row) -> None:
        """Add a row; it is merged into the last one where both began in the same interval."""
        width_s = self.width_s
        if self.rows and width_s and self.rows[_AT - WIDTH] // width_s == row[_AT] // width_s:
            self.rows[-WIDTH:] = array("d", merged(self.row(-WIDTH), row))
        else:
            self.rows.extend(row)

    def take_oldest(self) -> Row | None:
        """Remove the oldest row if there are too many, and return it."""
        if len(self.rows) <= self.capacity * WIDTH:
            return None
        row = self.row(0)
        del self.rows[:WIDTH]
        return row

    def halve(self) -> None:
        """Merge each two rows in a row, and double the width: the last tier forgets nothing."""
        rows = array("d")
        whole = list(self)
        for place in range(0, len(whole) - 1, 2):
            rows.extend(merged(whole[place], whole[place + 1]))
        if len(whole) % 2:
            rows.extend(whole[-1])
        self.rows = rows
        self.width_s *= 2

    def row(self, start: int) -> Row:
        """Return the row whose first figure is at `start`."""
        at, duration, number, lowest, mean, highest, blocks = self.rows[start : start + WIDTH or None]
        return at, duration, number, lowest, mean, highest, blocks

    def __iter__(self) -> Iterator[Row]:
        return (self.row(start) for start in range(0, len(self.rows), WIDTH))


class SampleSeries:
    """The tiers behind one another; not thread-safe."""

    __slots__ = ("tiers",)

    def __init__(self) -> None:
        self.tiers = tuple(Tier(width_s, capacity) for width_s, capacity in TIERS)

    def add(self, row: Row) -> None:
        """Add the newest reading. Cost: some 2 us; once a minute, and more rarely, some 50."""
        self.tiers[0].append(row)
        self._overflow(0)

    def restore(self, tier: int, row: Row) -> None:
        """Add a row to the tier in which it was saved; rows come in the order in which they were saved."""
        place = min(max(tier, 0), len(self.tiers) - 1)
        self.tiers[place].append(row)
        self._overflow(place)

    @property
    def last_at_s(self) -> float | None:
        """When the newest reading was taken; None before the first."""
        newest = next((tier for tier in self.tiers if tier.rows), None)
        if newest is None:
            return None
        row = newest.row(-WIDTH)
        return row[_AT] + row[_DURATION]

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Return the rows with the number of their tier, oldest first."""
        for place in range(len(self.tiers) - 1, -1, -1):
            for row in self.tiers[place]:
                yield place, row

    def _overflow(self, place: int) -> None:
        tier = self.tiers[place]
        if place == len(self.tiers) - 1:
            if len(tier) > tier.capacity:
                tier.halve()
            return
        while (row := tier.take_oldest()) is not None:
            self.tiers[place + 1].merge(row)
            self._overflow(place + 1)


def merged(first: Row, second: Row) -> Row:
    """Return one row for two that follow one another."""
    number = first[_COUNT] + second[_COUNT]
    known = [row[_BLOCKS] for row in (first, second) if row[_BLOCKS] != UNKNOWN]
    mean = (first[_MEAN] * first[_COUNT] + second[_MEAN] * second[_COUNT]) / number
    lowest, highest = min(first[_LOWEST], second[_LOWEST]), max(first[_HIGHEST], second[_HIGHEST])
    return (
        first[_AT],
        max(0.0, second[_AT] + second[_DURATION] - first[_AT]),
        number,
        lowest,
        min(max(mean, lowest), highest),  # rounding of equal figures may leave their range
        highest,
        min(known, default=UNKNOWN),
    )


def to_sample(row: Row) -> Sample:
    """Return a row as a record."""
    at, duration, number, lowest, mean, highest, blocks = row
    known = None if blocks == UNKNOWN else int(blocks)
    return Sample(at, duration, int(number), int(lowest), round(mean), int(highest), known)
