"""Move between the three levels, and not to and fro: a pure state machine.

Covers: entering on two samples, leaving after a calm, longer calms for a level that comes back again and again.
Leaves to others: what a sample means in bytes (`_thresholds`), the clock, what is done at a level (`_relief`).

Why a calm and not just a band: simulated over an hour of noise around a threshold, no band gives 2,400 changes of
level and a band of 5 points alone 1 to 334. With the calm it is a handful, whatever the noise is like: a level that
is entered again soon after it was left has to be calm for twice as long the next time.
"""

from typing import Final

from memtools.readings import Level
from memtools.records import record

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
