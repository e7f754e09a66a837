"""The trend detector: does the lowest use of memory rise, on any scale from minutes to days?

The lowest figure of a block of time is its floor: what garbage, bursts and load leave behind. Blocks of five minutes
are merged by pairs into seven levels, up to blocks of 5.3 hours, and each level keeps its last 32: one shows three
hours finely, another a week. Whenever a block closes, its level is judged. The floor rises if all of this holds, at two
closings running:

- Kendall's tau of the floors is at least 0.7;
- the rise is at least 4 % of the limit, and four times the noise;
- the headroom is at most k times the rise: the detector extrapolates no further than k times what it has seen. That is
  the sensitivity; a young process has a smaller k, since a warm-up and the first morning look like a leak;
- no two steps make most of the rise, as a deploy, a table that is loaded, or a burst that stays would;
- it goes on: the second half rises nearly as fast as the first, and so does the last quarter;
- it is well above the largest rise of this level that receded later. That is the only thing learned.

Fitting saturating curves, for caches that fill up, did not help.
"""

from array import array
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import ceil, isfinite
from typing import Any, Final, Literal, TypeAlias, cast

from memtools._records import as_dict, record
from memtools.analysis._leak_kind import LeakKind, LeakVerdict, judge_leak
from memtools.analysis._robust_statistics import kendall_tau, median, noise_of, theil_sen
from memtools.readings._counters import Counters
from memtools.units import format_duration, format_size, parse_choice

Sensitivity: TypeAlias = Literal["low", "balanced", "high"]

BLOCK_S: Final = 300.0
LEVELS: Final = 7
KEPT: Final = 32
MIN_FLOORS: Final = 16
START_UP_BLOCKS: Final = 2  # imports and first requests are no floor
_SETTLED_S: Final = 1_200.0  # after these blocks: pools and caches; the forecast leaves them out
_UNKNOWN: Final = -1.0
_CLOSINGS: Final = 2
_MAX_GAP_BLOCKS: Final = 12  # after more time without a reading, the levels begin anew
_FULL_AGE_BLOCKS: Final = 432  # 36 hours: every hour of the day was seen, and the one after it

_MIN_TAU: Final = 0.7
_MIN_RISE: Final = 0.04  # of the limit
_MIN_RISE_IN_NOISE: Final = 4.0
_MAX_TWO_STEPS: Final = 0.75  # of the rise
_MIN_SECOND_HALF: Final = 0.7  # of the slope of the first half
_MIN_LAST_QUARTER: Final = 0.5  # of the slope of the whole
_ABOVE_LEARNED: Final = 1.5
_RECEDED: Final = 0.5  # of a rise

# k, and the share of it with which a process starts; chosen on development seeds (docs/performance.md).
K: Final[Mapping[str, tuple[float, float]]] = {"low": (2.0, 0.25), "balanced": (3.0, 0.5), "high": (4.0, 0.5)}
# Where the ledger knows what ended calls have left, and that rises as well, load is no explanation.
K_WITH_OWNERS: Final = (5.0, 0.55)
_MIN_LEFT_SHARE: Final = 0.5  # of the rise of resident memory
_MIN_LEFT_SECOND_HALF: Final = 0.9

_FIGURES: Final = 6
_FLOOR, _PEAK, _BLOCKS, _MALLOC, _OWNED, _LEFT = range(_FIGURES)
_MIN_OWNED_SHARE: Final = 0.5  # of the rise: else the ledger does not see what grows


@record
class RisingFloor:
    """A floor that rises, with the evidence. It is called a leak only if the counters confirm it.

    Attributes:
        at_s: when it was found, or judged last, in seconds since the epoch.
        kind: what grows, by the counters; `NONE` or `UNKNOWN` where they do not confirm a leak.
        rise_bytes: how far the floor has risen within `seconds`.
        seconds: the time in which it did.
        block_s: the time of which each floor is the lowest figure.
        tau: Kendall's tau of these floors, up to 1.
        floor_bytes: the newest of them.
        headroom_bytes: what is left to the limit.
        reason: the evidence, as a sentence.
    """

    at_s: float
    kind: LeakKind
    rise_bytes: int
    seconds: float
    block_s: float
    tau: float
    floor_bytes: int
    headroom_bytes: int
    reason: str

    @property
    def is_leak(self) -> bool:
        """Whether the counters of the process confirm a leak."""
        return self.kind not in (LeakKind.NONE, LeakKind.UNKNOWN)

    @property
    def bytes_per_s(self) -> float:
        """The mean speed of the rise."""
        return self.rise_bytes / self.seconds

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self) | {"kind": self.kind.value, "is_leak": self.is_leak}


class LevelFloors:
    """The last blocks of one level: the lowest and highest use in each, and the lowest of each counter."""

    __slots__ = (
        "block_s",
        "closed",
        "closings",
        "closings_with_owners",
        "columns",
        "learned",
        "open_row",
        "peak",
        "valley",
    )

    def __init__(self, block_s: float) -> None:
        self.block_s = block_s
        self.learned = 0.0  # the largest rise that receded by half, in bytes
        self.clear()

    def clear(self) -> None:
        """Forget all but what was learned."""
        # The counters are only compared with one another: 24 bits are enough for them.
        self.columns = tuple(array("d" if place <= _PEAK else "f") for place in range(_FIGURES))
        self.closed = 0
        self.open_row: tuple[float, ...] | None = None  # the first half of a block of the next level
        self.closings = self.closings_with_owners = 0
        self.valley = self.peak = _UNKNOWN

    @property
    def floors(self) -> "array[float]":
        """The lowest use of each block in bytes, oldest first."""
        return self.columns[_FLOOR]

    @property
    def peaks(self) -> "array[float]":
        """The highest use of each block in bytes."""
        return self.columns[_PEAK]

    @property
    def unsettled(self) -> int:
        """How many of the blocks, the oldest, belong to the start of the process."""
        return max(0, ceil(_SETTLED_S / self.block_s) - (self.closed - len(self.floors)))

    def close(self, row: tuple[float, ...]) -> tuple[float, ...] | None:
        """Add a block; return that of the next level if this is the second half of it."""
        for column, figure in zip(self.columns, row, strict=True):
            if len(column) == KEPT:
                del column[0]  # before the next one comes: an array that is not outgrown needs no larger buffer
            column.append(figure)
        self.closed += 1
        self._learn(row[_FLOOR])
        first, self.open_row = self.open_row, row
        if first is None:
            return None
        self.open_row = None
        return merge_rows(first, row)

    def counters(self) -> list[Counters]:
        """Return the counters of each block, for `judge_leak`."""
        return [
            Counters(place * self.block_s, int(floor), max(0, int(blocks)), None if malloc < 0 else int(malloc))
            for place, (floor, _, blocks, malloc, _, _) in enumerate(zip(*self.columns, strict=True))
        ]

    def _learn(self, floor: float) -> None:
        if self.valley < 0:
            self.valley = self.peak = floor
        elif floor > self.peak:
            self.peak = floor
        elif floor < self.peak - _RECEDED * (self.peak - self.valley):
            self.learned = max(self.learned, self.peak - self.valley)
            self.valley = self.peak = floor
        elif floor < self.valley:
            self.valley = self.peak = floor


def merge_rows(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    """Return the figures of two blocks together: all are minima, except the peak."""
    floor, peak, *counters = map(min, first, second)
    return floor, max(first[_PEAK], second[_PEAK], peak), *counters


class TrendDetector:
    """Judges whether the floor of memory rises, reading by reading; state and cost are bounded.

    ```python
    from memtools.analysis import TrendDetector

    detector = TrendDetector()
    for minute in range(300):
        detector.observe(minute * 60.0, (200 + minute) << 20, limit_bytes=600 << 20)
    assert detector.rising is not None
    assert not detector.rising.is_leak  # without the counters: memory grows, and it may be a cache
    ```

    Args:
        sensitivity: `"low"`, `"balanced"` or `"high"`: how far from the limit it speaks, and how often in vain.

    Raises:
        ConfigError: for another sensitivity.

    Cost: below 2 us for a reading; whenever a block of five minutes closes, 0.1 to 1 ms. State: below 16 KiB. Not
    thread-safe.
    """

    __slots__ = ("_active", "_age", "_block", "_k", "_limit", "_row", "_skip", "_used", "levels", "rising")

    def __init__(self, sensitivity: Sensitivity = "balanced") -> None:
        self._k = K[parse_choice(sensitivity, tuple(K), name="sensitivity")]
        self.levels: tuple[LevelFloors, ...] = tuple(LevelFloors(BLOCK_S * 2**level) for level in range(LEVELS))
        self.rising: RisingFloor | None = None
        self._active: tuple[int, float] | None = None  # the level that rose, and the floor below which that is over
        self._age = 0  # blocks, those of former processes included
        self._block = -1
        self._row: list[float] | None = None  # of the block that is open
        self._skip = START_UP_BLOCKS
        self._limit = self._used = 0.0

    def observe(
        self,
        at_s: float,
        used_bytes: float,
        *,
        highest_bytes: float | None = None,
        limit_bytes: float | None = None,
        blocks: float | None = None,
        malloc_bytes: float | None = None,
        owned_bytes: float | None = None,
        left_bytes: float | None = None,
    ) -> bool:
        """Take a reading into account; return whether a block has closed, so that `rising` may have changed.

        Args:
            at_s: when, in seconds of any clock that does not fall.
            used_bytes: resident memory; of merged readings, the lowest.
            highest_bytes: of merged readings, the highest.
            limit_bytes: what the process may use; None where that has not changed. Nothing is judged without a limit.
            blocks: `sys.getallocatedblocks()`.
            malloc_bytes: bytes in use of C's malloc.
            owned_bytes: live bytes of all calls, scopes and tasks, by the native ledger.
            left_bytes: those of them that ended ones have left.
        """
        if limit_bytes is not None:
            self._limit = limit_bytes
        highest = used_bytes if highest_bytes is None else highest_bytes
        counted = _UNKNOWN if blocks is None else blocks
        malloc = _UNKNOWN if malloc_bytes is None else malloc_bytes
        owned = left = _UNKNOWN
        if owned_bytes is not None and left_bytes is not None:
            owned, left = owned_bytes, left_bytes
        block, row, self._used = int(at_s // BLOCK_S), self._row, used_bytes
        if row is None or block > self._block:
            self._row = [used_bytes, highest, counted, malloc, owned, left]
            return self._begin_block(block, row)
        # Each by itself: a `map` over them takes three times as long, and this is done for every reading.
        if used_bytes < row[_FLOOR]:
            row[_FLOOR] = used_bytes
        if highest > row[_PEAK]:
            row[_PEAK] = highest
        if counted < row[_BLOCKS]:
            row[_BLOCKS] = counted
        if malloc < row[_MALLOC]:
            row[_MALLOC] = malloc
        if owned < row[_OWNED]:
            row[_OWNED] = owned
        if left < row[_LEFT]:
            row[_LEFT] = left
        return False

    def _begin_block(self, block: int, closed: list[float] | None) -> bool:
        first, self._block = self._block, block
        if closed is None:
            return False
        if block - first > _MAX_GAP_BLOCKS:
            self._begin_anew()
            return True
        for _ in range(block - first):  # blocks without a reading stand still
            self._close(tuple(closed), (first + 1) * BLOCK_S)
        return True

    @property
    def limit_bytes(self) -> int | None:
        """What the process may use, as it was told last."""
        return int(self._limit) if self._limit > 0 else None

    def state(self) -> dict[str, object]:
        """Return what was learned, as a dict that JSON can hold."""
        return {"age_blocks": self._age, "receded_bytes": [level.learned for level in self.levels]}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over what an earlier process has learned; figures that make no sense are left out."""
        age, receded = state.get("age_blocks"), state.get("receded_bytes")
        if isinstance(age, int) and not isinstance(age, bool) and age >= 0:
            self._age = age
        if isinstance(receded, list):
            for level, learned in zip(
                self.levels, cast("Iterable[Any]", receded), strict=False
            ):  # Any: JSON of anything
                if isinstance(learned, (int, float)) and isfinite(learned) and learned >= 0:
                    level.learned = float(learned)

    def _begin_anew(self) -> None:
        for level in self.levels:
            level.clear()
        self._active = self.rising = None

    def _close(self, row: tuple[float, ...], at_s: float) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._age += 1
        closed: tuple[float, ...] | None = row
        found: int | None = None
        for place, level in enumerate(self.levels):
            if closed is None:
                break
            closed = level.close(closed)
            is_rising, with_owners = self._judge(level)
            level.closings = level.closings + 1 if is_rising else 0
            level.closings_with_owners = level.closings_with_owners + 1 if with_owners else 0
            if found is None and max(level.closings, level.closings_with_owners) >= _CLOSINGS:
                found = place
        self._update(found, at_s)

    def _update(self, found: int | None, at_s: float) -> None:
        if self._active is not None:
            place, over_below = self._active
            if self.levels[place].floors[-1] < over_below:
                self._active = self.rising = None
        if found is None:
            return
        was = self.rising
        rising = self._describe(found, at_s, was)
        if was is None:
            self._active = found, rising.floor_bytes - _RECEDED * rising.rise_bytes
        self.rising = rising

    def _judge(self, level: LevelFloors) -> tuple[bool, bool]:
        """Return whether a level rises by resident memory alone, and whether by that and what ended calls have left."""
        floors = level.floors
        number = len(floors)
        if number < MIN_FLOORS or self._limit <= 0:
            return False, False
        rise = rise_of(floors)
        # The cheap questions first: nearly all closings end here.
        if rise < max(_MIN_RISE * self._limit, _ABOVE_LEARNED * level.learned):
            return False, False
        headroom, has_left = self._limit - self._used, level.columns[_LEFT][0] >= 0
        near = headroom <= self._share(self._k) * rise
        if not near and not (has_left and headroom <= self._share(K_WITH_OWNERS) * rise):
            return False, False
        if rise < _MIN_RISE_IN_NOISE * noise_of(floors) or not _goes_on(floors, rise):
            return False, False
        return near, has_left and _left_rises(level.columns[_LEFT], rise)

    def _share(self, k: tuple[float, float]) -> float:
        whole, at_start = k
        return whole * min(1.0, at_start + (1 - at_start) * self._age / _FULL_AGE_BLOCKS)

    def _describe(self, place: int, at_s: float, was: RisingFloor | None) -> RisingFloor:
        level = self.levels[place]
        floors = level.floors
        rise, seconds = rise_of(floors), (len(floors) - 1) * level.block_s
        confirmed = self._confirm(place)
        if was is not None and was.is_leak and not confirmed.is_leak:
            confirmed = LeakVerdict(was.kind, 0.0, 0.0, 0.0, "the counters have confirmed it before")
        reason = (
            f"the lowest use rose by {format_size(rise)} in {format_duration(seconds)}, in nearly all of "
            f"{len(floors)} blocks of {format_duration(level.block_s)}; {confirmed.reason}"
        )
        return RisingFloor(
            at_s,
            confirmed.kind,
            int(rise),
            seconds,
            level.block_s,
            round(kendall_tau(floors), 3),
            int(floors[-1]),
            int(self._limit - self._used),
            reason,
        )

    def _confirm(self, place: int) -> LeakVerdict:
        level = self.levels[place]
        # The level below has twice the points for the same time.
        verdict = judge_leak(self.levels[max(0, place - 1)].counters(), warm_up=0.0)
        owned = level.columns[_OWNED]
        if owned[0] >= 0 and rise_of(owned) >= _MIN_OWNED_SHARE * rise_of(level.floors):
            if level.closings_with_owners >= _CLOSINGS:
                kind = LeakKind.NATIVE if verdict.kind is LeakKind.NATIVE else LeakKind.PYTHON
                return LeakVerdict(kind, 0.0, 0.0, 0.0, "what ended calls have left behind rises with it")
            return LeakVerdict(LeakKind.NONE, 0.0, 0.0, 0.0, "what ended calls have left behind does not rise with it")
        if level.columns[_BLOCKS][0] < 0:
            return LeakVerdict(LeakKind.UNKNOWN, 0.0, 0.0, 0.0, "there are no counters that could confirm a leak")
        return verdict


def rise_of(floors: "array[float]") -> float:
    """Return how far a floor has risen, from the median of the first three to that of the last three."""
    return median(floors[-3:]) - median(floors[:3])


def _goes_on(floors: "array[float]", rise: float) -> bool:
    steps = sorted([after - before for before, after in pairwise(floors)])
    if steps[-1] + steps[-2] > _MAX_TWO_STEPS * rise:
        return False
    half, quarter = len(floors) // 2, len(floors) // 4
    if theil_sen(floors[-quarter - 1 :]) < _MIN_LAST_QUARTER * rise / (len(floors) - 1):
        return False
    if theil_sen(floors[half:]) < _MIN_SECOND_HALF * theil_sen(floors[:half]):
        return False
    return kendall_tau(floors) >= _MIN_TAU


def _left_rises(left: "array[float]", rise: float) -> bool:
    if rise_of(left) < _MIN_LEFT_SHARE * rise or kendall_tau(left) < _MIN_TAU:
        return False
    half = len(left) // 2
    return theil_sen(left[half:]) >= _MIN_LEFT_SECOND_HALF * theil_sen(left[:half])
