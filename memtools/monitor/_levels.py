"""Thresholds in bytes, and the three levels with hysteresis."""

from collections.abc import Callable
from math import inf
from typing import Final, TypeAlias, cast

from memtools._records import record
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.units import parse_size

Size: TypeAlias = int | str
GetLimit: TypeAlias = Callable[[], int | None]

DWELL_S: Final = 10.0  # the shortest time below the exit, and so the shortest stay at a level
LONGEST_DWELL_S: Final = 320.0  # five doublings
RELAPSE_S: Final = 600.0  # a level that is entered again within this time after it was left dwells twice as long

# A level is left 5 points below its entry: of the limit where the entry is a share of it, else of the entry itself.
_BAND_PERCENT: Final = 5
_FREE_BAND_PERCENT: Final = 25  # of the headroom: 5 % of a small headroom are within the noise


@record
class Assessment:
    """What one reading means by itself, without its history.

    Attributes:
        reached: the highest level whose entry the reading is at or beyond.
        held: the highest level whose exit the reading is not below; never under `reached`.
    """

    reached: Level
    held: Level


@record
class Bounds:
    """Where one level begins and ends, in bytes.

    Attributes:
        level: the level.
        entry_bytes: the use that enters it; infinite where use does not decide.
        exit_bytes: it is held down to this use.
        entry_headroom_bytes: the headroom that enters it; negatively infinite where headroom does not decide.
        exit_headroom_bytes: it is held up to this headroom.
    """

    level: Level
    entry_bytes: float
    exit_bytes: float
    entry_headroom_bytes: float
    exit_headroom_bytes: float


class LevelMachine:
    """The present level, moved by one `observe` per reading; pure, without a clock of its own.

    Upward: two samples in a row, the second of which may follow at once (`needs_confirmation`). Downward: when every
    sample of the last `dwell_s` seconds was below the exit.

    A band alone is not enough. In a simulation of an hour of noise around a threshold, no band gives 2,400 changes of
    level, and a band of 5 points alone gives 1 to 334. With the dwell time, which doubles for a level that is entered
    again soon after it was left, it is a handful, whatever the noise is like.
    """

    __slots__ = ("_dwell_by_level", "_entered_at", "_held_at", "_last_reached", "_left_at", "dwell_s", "level")

    def __init__(self, *, dwell_s: float = DWELL_S) -> None:
        self.dwell_s = dwell_s
        self.level = Level.NORMAL
        self._last_reached = Level.NORMAL
        self._entered_at = 0.0
        self._left_at: dict[Level, float] = {}
        self._held_at: dict[Level, float] = {}
        self._dwell_by_level: dict[Level, float] = {}

    @property
    def needs_confirmation(self) -> bool:
        """Whether the last sample alone would mean a higher level: the next should follow soon."""
        return self._last_reached > self.level

    @property
    def required_dwell_s(self) -> float:
        """How long memory has to stay below the exit before the present level is left, in seconds."""
        return self._dwell_by_level.get(self.level, self.dwell_s)

    def observe(self, assessment: Assessment, now: float) -> Level | None:
        """Take one sample at `now` (seconds, never falling); return the new level where it changed, else None."""
        for level in (Level.WARNING, Level.CRITICAL):
            if assessment.held >= level:
                self._held_at[level] = now

        confirmed = min(assessment.reached, self._last_reached)
        self._last_reached = assessment.reached
        if confirmed > self.level:
            return self._rise_to(confirmed, now)
        may_leave = now - self._entered_at >= self.required_dwell_s
        if assessment.held < self.level and may_leave and self._has_dwelt(self.level, now):
            return self._fall(now)
        return None

    def _rise_to(self, level: Level, now: float) -> Level:
        for passed in (Level.WARNING, Level.CRITICAL):
            if self.level < passed <= level:
                self._dwell_by_level[passed] = self._next_dwell_s(passed, now)
                self._held_at[passed] = now
        self._entered_at = now
        self.level = level
        return level

    def _next_dwell_s(self, level: Level, now: float) -> float:
        left_at = self._left_at.get(level)
        if left_at is None or now - left_at > RELAPSE_S:
            return self.dwell_s
        return min(2 * self._dwell_by_level.get(level, self.dwell_s), max(LONGEST_DWELL_S, self.dwell_s))

    def _has_dwelt(self, level: Level, now: float) -> bool:
        return now - self._held_at[level] >= self._dwell_by_level.get(level, self.dwell_s)

    def _fall(self, now: float) -> Level:
        self._left_at[self.level] = now
        self.level = Level(self.level - 1)
        if self.level is Level.WARNING and self._has_dwelt(Level.WARNING, now):
            self._left_at[Level.WARNING] = now
            self.level = Level.NORMAL
        self._entered_at = now
        return self.level


class LevelBounds:
    """The bounds of all levels under one limit, and what a reading means by them. Immutable."""

    __slots__ = ("by_level", "needs_headroom", "needs_only_headroom")

    def __init__(self, bounds: tuple[Bounds, ...]) -> None:
        self.by_level = {each.level: each for each in bounds}
        self.needs_headroom = any(each.entry_headroom_bytes > -inf for each in bounds)
        self.needs_only_headroom = self.needs_headroom and all(each.entry_bytes == inf for each in bounds)

    @property
    def highest(self) -> Level:
        """The highest level that can be reached."""
        return max(self.by_level)

    def assess(self, used_bytes: int, headroom_bytes: int | None) -> Assessment:
        """Return what a reading means; an unknown headroom decides nothing."""
        headroom = inf if headroom_bytes is None else headroom_bytes
        reached = held = Level.NORMAL
        for level, bounds in self.by_level.items():  # rising
            if used_bytes >= bounds.entry_bytes or headroom <= bounds.entry_headroom_bytes:
                reached = held = level
            elif used_bytes >= bounds.exit_bytes or headroom <= bounds.exit_headroom_bytes:
                held = level
        return Assessment(reached, held)

    def bytes_to_next(self, level: Level, used_bytes: int, headroom_bytes: int | None) -> float:
        """Return how many bytes may be added until a level above `level` is entered; infinite where none is above."""
        headroom = inf if headroom_bytes is None else headroom_bytes
        distances = [
            min(bounds.entry_bytes - used_bytes, headroom - bounds.entry_headroom_bytes)
            for higher, bounds in self.by_level.items()
            if higher > level
        ]
        return min(distances, default=inf)

    def is_entered_by_headroom(self, level: Level, used_bytes: int, headroom_bytes: int | None) -> bool:
        """Return whether the headroom is what enters `level`, and the use is not."""
        bounds = self.by_level.get(level)
        if bounds is None or headroom_bytes is None:
            return False
        return headroom_bytes <= bounds.entry_headroom_bytes and used_bytes < bounds.entry_bytes

    def free_bytes(self, level: Level) -> tuple[int, int]:
        """Return the headroom that enters `level`, and the one above which it is left; 0 where headroom does not."""
        bounds = self.by_level.get(level)
        if bounds is None or bounds.entry_headroom_bytes == -inf:
            return 0, 0
        return int(bounds.entry_headroom_bytes), int(bounds.exit_headroom_bytes)

    def exit_bytes(self, level: Level, used_bytes: int, headroom_bytes: int | None) -> int:
        """Return the use in bytes below which `level` is left, if no other process changes its use."""
        bounds = self.by_level[level]
        below = bounds.exit_bytes
        if headroom_bytes is not None and bounds.exit_headroom_bytes > -inf:
            below = min(below, used_bytes - max(0.0, bounds.exit_headroom_bytes - headroom_bytes))
        return max(0, int(min(below, used_bytes)))

    def entry_bytes(self, level: Level, used_bytes: int, headroom_bytes: int | None) -> int:
        """Return the use in bytes that enters `level`, if no other process changes its use."""
        bounds = self.by_level[level]
        entry = bounds.entry_bytes
        if headroom_bytes is not None and bounds.entry_headroom_bytes > -inf:
            entry = min(entry, used_bytes + headroom_bytes - bounds.entry_headroom_bytes)
        return max(0, int(min(entry, 2**62)))


class Thresholds:
    """The thresholds as they were given; `bounds` converts them to bytes for a limit.

    Args:
        warning: the use that enters `WARNING`: bytes, `"500 MB"`, or a share of the effective limit, `"80%"`.
        critical: the same for `CRITICAL`.
        free: the headroom below which `WARNING` is entered, `CRITICAL` at half of it; or a pair of both.
        get_limit: returns the bytes that `"100%"` means, or None.

    Raises:
        ConfigError: for a threshold that makes no sense, naming it: negative, zero, not finite, bool, over 100 %, a
            share where no limit is known, warning not below critical.
    """

    __slots__ = ("_critical", "_free", "_warning")

    def __init__(
        self,
        warning: Size | None,
        critical: Size | None,
        free: Size | tuple[Size, Size] | None,
        get_limit: GetLimit,
    ) -> None:
        self._warning = warning
        self._critical = critical
        self._free = _parse_free(free, get_limit)
        if warning is None and critical is None and free is None:
            raise ConfigError("warning", None, "at least one of warning=, critical= and free=")

        sizes = [_parse_positive(size, name, get_limit) for name, size in self._use_thresholds()]
        if len(sizes) == 2 and sizes[0] >= sizes[1]:
            raise ConfigError("warning", warning, f"less than critical={critical!r}")

    def bounds(self, limit_bytes: int | None) -> LevelBounds:
        """Return where the levels begin and end under this limit.

        Raises:
            ConfigError: where a share needs a limit and none is known any more.
        """

        def get_limit() -> int | None:
            return limit_bytes

        uses = {
            name: (parse_size(size, name=name, percent_of=get_limit), _is_share(size))
            for name, size in self._use_thresholds()
        }
        headrooms = {} if self._free is None else dict(zip(("warning", "critical"), self._free, strict=True))
        bounds: list[Bounds] = []
        for level, name in ((Level.WARNING, "warning"), (Level.CRITICAL, "critical")):
            if name not in uses and name not in headrooms:
                continue
            entry, exit_ = _entry_and_exit(uses[name], limit_bytes) if name in uses else (inf, inf)
            headroom = -inf
            if name in headrooms:
                headroom = parse_size(headrooms[name], name="free", percent_of=get_limit)
            bounds.append(Bounds(level, entry, exit_, headroom, headroom * (100 + _FREE_BAND_PERCENT) / 100))
        return LevelBounds(_in_rising_order(tuple(bounds)))

    def _use_thresholds(self) -> list[tuple[str, Size]]:
        pairs = (("warning", self._warning), ("critical", self._critical))
        return [(name, size) for name, size in pairs if size is not None]


def _parse_free(free: Size | tuple[Size, Size] | None, get_limit: GetLimit) -> tuple[Size, Size] | None:
    if free is None:
        return None
    if isinstance(free, tuple):
        pair = cast("tuple[Size, ...]", free)
        if len(pair) != 2:
            raise ConfigError("free", free, "one size, or a pair of sizes for warning and critical")
        if _parse_positive(pair[1], "free", get_limit) >= _parse_positive(pair[0], "free", get_limit):
            raise ConfigError("free", free, "a larger size for warning than for critical")
        return pair[0], pair[1]
    whole = _parse_positive(free, "free", get_limit)
    if isinstance(free, str) and _is_share(free):
        return free, f"{float(free.strip().rstrip('%')) / 2:.9f}%"  # a share stays one: limits change
    return whole, whole // 2


def _parse_positive(size: object, name: str, get_limit: GetLimit) -> int:
    size_bytes = parse_size(size, name=name, percent_of=get_limit)
    if size_bytes == 0:
        raise ConfigError(name, size, "a size above 0")
    return size_bytes


def _is_share(size: Size) -> bool:
    return isinstance(size, str) and size.rstrip().endswith("%")


def _entry_and_exit(use: tuple[int, bool], limit_bytes: int | None) -> tuple[float, float]:
    entry, is_share = use
    whole = limit_bytes if is_share and limit_bytes is not None else entry
    # A threshold of a few percent would never be left if 5 points had to be taken from it.
    return entry, entry - min(whole * _BAND_PERCENT / 100, entry / 2)


def _in_rising_order(bounds: tuple[Bounds, ...]) -> tuple[Bounds, ...]:
    # A share of a limit that fell may slip under a size that was given in bytes: then both are entered at once.
    if len(bounds) < 2 or bounds[0].entry_bytes <= bounds[1].entry_bytes:
        return bounds
    low, high = bounds
    return (
        Bounds(
            low.level,
            high.entry_bytes,
            min(low.exit_bytes, high.exit_bytes),
            low.entry_headroom_bytes,
            low.exit_headroom_bytes,
        ),
        high,
    )
