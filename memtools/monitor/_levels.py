"""Move between the three levels, and not to and fro: a pure state machine.

Covers: entering on two samples, leaving after a calm, longer calms for a level that comes back again and again.
Leaves to others: what a sample means in bytes (`_thresholds`), the clock, what is done at a level (`_relief`).

Why a calm and not just a band: simulated over an hour of noise around a threshold, no band gives 2,400 changes of
level and a band of 5 points alone 1 to 334. With the calm it is a handful, whatever the noise is like: a level that
is entered again soon after it was left has to be calm for twice as long the next time.
"""

from collections.abc import Callable
from math import inf
from typing import Final, TypeAlias, cast

from memtools._records import record
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.units import parse_size

DWELL_S: Final = 10.0  # the shortest calm, and so the shortest stay
LONGEST_DWELL_S: Final = 320.0  # five doublings
RELAPSE_S: Final = 600.0  # entered again within this time of being left: the calm doubles


@record
class Standing:
    """What one reading says, before any history.

    Attributes:
        reached: the highest level whose entry the reading is at or beyond.
        held: the highest level whose exit the reading is not below; never under `reached`.
    """

    reached: Level
    held: Level


class LevelMachine:
    """The present level, moved by one `observe` per reading.

    Upward: two samples in a row, the second of which may follow at once (`needs_second_look`). Downward: when every
    sample of the last `dwell_s` seconds was below the exit.
    """

    __slots__ = ("_calms_s", "_entered_at", "_held_at", "_last_reached", "_left_at", "dwell_s", "level")

    def __init__(self, *, dwell_s: float = DWELL_S) -> None:
        self.dwell_s = dwell_s
        self.level = Level.NORMAL
        self._last_reached = Level.NORMAL
        self._entered_at = 0.0
        self._left_at: dict[Level, float] = {}
        self._held_at: dict[Level, float] = {}
        self._calms_s: dict[Level, float] = {}

    @property
    def needs_second_look(self) -> bool:
        """Whether the last sample alone would mean a higher level: the next should follow soon."""
        return self._last_reached > self.level

    @property
    def calm_s(self) -> float:
        """How long it has to be calm before the present level is left, in seconds."""
        return self._calms_s.get(self.level, self.dwell_s)

    def observe(self, standing: Standing, now: float) -> Level | None:
        """Take one sample at `now` (seconds, never falling); return the new level where it changed, else None."""
        for level in (Level.WARNING, Level.CRITICAL):
            if standing.held >= level:
                self._held_at[level] = now

        confirmed = min(standing.reached, self._last_reached)
        self._last_reached = standing.reached
        if confirmed > self.level:
            return self._rise_to(confirmed, now)
        is_stale = now - self._entered_at >= self.calm_s
        if standing.held < self.level and is_stale and self._is_calm(self.level, now):
            return self._fall(now)
        return None

    def _rise_to(self, level: Level, now: float) -> Level:
        for passed in (Level.WARNING, Level.CRITICAL):
            if self.level < passed <= level:
                self._calms_s[passed] = self._next_calm_s(passed, now)
                self._held_at[passed] = now
        self._entered_at = now
        self.level = level
        return level

    def _next_calm_s(self, level: Level, now: float) -> float:
        left_at = self._left_at.get(level)
        if left_at is None or now - left_at > RELAPSE_S:
            return self.dwell_s
        return min(2 * self._calms_s.get(level, self.dwell_s), max(LONGEST_DWELL_S, self.dwell_s))

    def _is_calm(self, level: Level, now: float) -> bool:
        return now - self._held_at[level] >= self._calms_s.get(level, self.dwell_s)

    def _fall(self, now: float) -> Level:
        self._left_at[self.level] = now
        self.level = Level(self.level - 1)
        if self.level is Level.WARNING and self._is_calm(Level.WARNING, now):
            self._left_at[Level.WARNING] = now
            self.level = Level.NORMAL
        self._entered_at = now
        return self.level


# Where the monitor acts: sizes, shares of the limit, or room that has to be left.
#
# Covers: reading the arguments, the marks for a limit that may change at run time, what one reading means by them.
# Leaves to others: history and hysteresis (`_levels`), how limits and room are found (`memtools.readings`).

Size: TypeAlias = int | str
KnownLimit: TypeAlias = Callable[[], int | None]

# A level is left 5 points below its entry: of the limit where the entry is a share of it, else of the entry itself.
_BAND_PERCENT: Final = 5
_FREE_BAND_PERCENT: Final = 25  # of the room: 5 % of a small room are within the noise


@record
class Mark:
    """Where one level begins and ends, in bytes.

    Attributes:
        level: the level.
        entry_bytes: the use that enters it; infinite where use does not decide.
        exit_bytes: it is held down to this use.
        entry_room_bytes: the room that enters it; negatively infinite where room does not decide.
        exit_room_bytes: it is held up to this room.
    """

    level: Level
    entry_bytes: float
    exit_bytes: float
    entry_room_bytes: float
    exit_room_bytes: float


class Marks:
    """The marks for one limit, and what a reading means by them. Never changes."""

    __slots__ = ("by_level", "need_room")

    def __init__(self, marks: tuple[Mark, ...]) -> None:
        self.by_level = {mark.level: mark for mark in marks}
        self.need_room = any(mark.entry_room_bytes > -inf for mark in marks)

    @property
    def highest(self) -> Level:
        """The highest level that can be reached."""
        return max(self.by_level)

    def judge(self, used_bytes: int, room_bytes: int | None) -> Standing:
        """Return how a reading stands; a room that nobody knows decides nothing."""
        room = inf if room_bytes is None else room_bytes
        reached = held = Level.NORMAL
        for level, mark in self.by_level.items():  # rising
            if used_bytes >= mark.entry_bytes or room <= mark.entry_room_bytes:
                reached = held = level
            elif used_bytes >= mark.exit_bytes or room <= mark.exit_room_bytes:
                held = level
        return Standing(reached, held)

    def room_to_next(self, level: Level, used_bytes: int, room_bytes: int | None) -> float:
        """Return how many bytes may be added until a level above `level` is entered; infinite where there is none."""
        room = inf if room_bytes is None else room_bytes
        steps = [
            min(mark.entry_bytes - used_bytes, room - mark.entry_room_bytes)
            for higher, mark in self.by_level.items()
            if higher > level
        ]
        return min(steps, default=inf)

    def exit_use(self, level: Level, used_bytes: int, room_bytes: int | None) -> int:
        """Return the use in bytes below which `level` is not held any more, everybody else's use unchanged."""
        mark = self.by_level[level]
        below = mark.exit_bytes
        if room_bytes is not None and mark.exit_room_bytes > -inf:
            below = min(below, used_bytes - max(0.0, mark.exit_room_bytes - room_bytes))
        return max(0, int(min(below, used_bytes)))

    def entry_use(self, level: Level, used_bytes: int, room_bytes: int | None) -> int:
        """Return the use in bytes that enters `level`, everybody else's use unchanged."""
        mark = self.by_level[level]
        entry = mark.entry_bytes
        if room_bytes is not None and mark.entry_room_bytes > -inf:
            entry = min(entry, used_bytes + room_bytes - mark.entry_room_bytes)
        return max(0, int(min(entry, 2**62)))


class Thresholds:
    """The thresholds as they were given; `marks` puts them into bytes for a limit.

    Args:
        warning: the use that enters `WARNING`: bytes, `"500 MB"`, or a share of the effective limit, `"80%"`.
        critical: the same for `CRITICAL`.
        free: the room below which `WARNING` is entered, `CRITICAL` at half of it; or a pair of both.
        known_limit: gives the bytes that `"100%"` means, or None.

    Raises:
        ConfigError: for what makes no sense, naming it: negative, zero, not finite, bool, over 100 %, a share where no
            limit is known, warning not below critical.
    """

    __slots__ = ("_critical", "_free", "_warning")

    def __init__(
        self,
        warning: Size | None,
        critical: Size | None,
        free: Size | tuple[Size, Size] | None,
        known_limit: KnownLimit,
    ) -> None:
        self._warning = warning
        self._critical = critical
        self._free = _free_pair(free, known_limit)
        if warning is None and critical is None and free is None:
            raise ConfigError("warning", None, "at least one of warning=, critical= and free=")

        sizes = [_positive(size, name, known_limit) for name, size in self._uses()]
        if len(sizes) == 2 and sizes[0] >= sizes[1]:
            raise ConfigError("warning", warning, f"less than critical={critical!r}")

    def marks(self, limit_bytes: int | None) -> Marks:
        """Return where the levels begin and end while the limit is this one.

        Raises:
            ConfigError: where a share needs a limit and none is known any more.
        """

        def known() -> int | None:
            return limit_bytes

        uses = {name: (_in_bytes(size, name, known), _is_share(size)) for name, size in self._uses()}
        rooms = {} if self._free is None else dict(zip(("warning", "critical"), self._free, strict=True))
        marks: list[Mark] = []
        for level, name in ((Level.WARNING, "warning"), (Level.CRITICAL, "critical")):
            if name not in uses and name not in rooms:
                continue
            entry, exit_ = _band(uses[name], limit_bytes) if name in uses else (inf, inf)
            room = _in_bytes(rooms[name], "free", known) if name in rooms else -inf
            marks.append(Mark(level, entry, exit_, room, room * (100 + _FREE_BAND_PERCENT) / 100))
        return Marks(_in_order(tuple(marks)))

    def _uses(self) -> list[tuple[str, Size]]:
        pairs = (("warning", self._warning), ("critical", self._critical))
        return [(name, size) for name, size in pairs if size is not None]


def _free_pair(free: Size | tuple[Size, Size] | None, known_limit: KnownLimit) -> tuple[Size, Size] | None:
    if free is None:
        return None
    if isinstance(free, tuple):
        pair = cast("tuple[Size, ...]", free)
        if len(pair) != 2:
            raise ConfigError("free", free, "one size, or a pair of sizes for warning and critical")
        if _positive(pair[1], "free", known_limit) >= _positive(pair[0], "free", known_limit):
            raise ConfigError("free", free, "more room for warning than for critical")
        return pair[0], pair[1]
    whole = _positive(free, "free", known_limit)
    if isinstance(free, str) and _is_share(free):
        return free, f"{float(free.strip().rstrip('%')) / 2:.9f}%"  # a share stays one: limits change
    return whole, whole // 2


def _positive(size: object, name: str, known_limit: KnownLimit) -> int:
    in_bytes = parse_size(size, name=name, percent_of=known_limit)
    if in_bytes == 0:
        raise ConfigError(name, size, "more than nothing")
    return in_bytes


def _in_bytes(size: Size, name: str, known_limit: KnownLimit) -> int:
    return parse_size(size, name=name, percent_of=known_limit)


def _is_share(size: Size) -> bool:
    return isinstance(size, str) and size.rstrip().endswith("%")


def _band(use: tuple[int, bool], limit_bytes: int | None) -> tuple[float, float]:
    entry, is_share = use
    whole = limit_bytes if is_share and limit_bytes is not None else entry
    # A threshold of a few percent would never be left if 5 points had to be taken from it.
    return entry, entry - min(whole * _BAND_PERCENT / 100, entry / 2)


def _in_order(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    # A share of a limit that fell may slip under a size that was given in bytes: then both are entered at once.
    if len(marks) < 2 or marks[0].entry_bytes <= marks[1].entry_bytes:
        return marks
    low, high = marks
    return (Mark(low.level, high.entry_bytes, min(low.exit_bytes, high.exit_bytes), low.entry_room_bytes,
                 low.exit_room_bytes), high)  # fmt: skip
