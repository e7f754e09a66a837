"""Look at memory and say what it means: the one place where reading, thresholds and levels meet.

Covers: full looks (the beat's, `check()`'s), the quick look of a sampled operation, limits that change, readings that
the system refuses. Leaves to others: what is done about it (`_relief`), who looks when (the beats, `_operations`).

Threads: any may look; one that finds another looking leaves it to that one, or waits, as it is told to.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.monitor._levels import LevelMachine, Marks, Standing, Thresholds
from memtools.readings import Headroom, Level, Limit, Reading, effective_limit, headroom, resident_bytes

# What a monitor reads: memory in use, the limit, the room that is left, and time.
#
# Leaves to others: how they are read (`memtools.readings`). A test, or a program that rehearses an emergency, hands in
# gauges of its own and scripts them.


@record
class MemorySource:
    """Where a monitor's figures come from.

    Attributes:
        used: bytes in use by this process; asked on every sampled operation, so it must be cheap and safe from any
            thread. May raise OSError.
        limit: the effective limit; asked at every look.
        headroom: what is left below the first wall; asked on the beat.
        clock: monotonic seconds.
    """

    used: Callable[[], int]
    limit: Callable[[], Limit]
    headroom: Callable[[], Headroom]
    clock: Callable[[], float]


def real_gauges(limit: int | str | None = None) -> MemorySource:
    """Return the gauges of this process; `limit` is that of `memtools.readings.effective_limit`."""
    return MemorySource(resident_bytes, partial(effective_limit, limit), partial(headroom, limit), time.monotonic)


# How long the beat may wait until it looks again.
#
# Covers: the nearness of the next threshold, the speed at which memory fills, the bounds of 50 ms and 5 s.
# Leaves to others: measuring (`_eye`), waiting (`_thread_beat`, `_task_beat`).
#
# A look costs some microseconds, and one with headroom some hundred: 5 s apart that is under 0.01 % of a core, 50 ms
# apart under 1 %, which is only paid while memory fills fast or is short.

SHORTEST_S: Final = 0.05
LONGEST_S: Final = 5.0
LOOKS_BEFORE_THE_THRESHOLD: Final = 4  # at the present speed
WHILE_SHORT_S: Final = 1.0  # so that a calm of 10 s is made of ten looks
_FADES_BY: Final = 0.5  # a burst is remembered for a few looks


class Pace:
    """Tells the seconds until the next look from what the last ones saw."""

    __slots__ = ("_last", "_speed", "longest_s", "shortest_s")

    def __init__(self, shortest_s: float = SHORTEST_S, longest_s: float = LONGEST_S) -> None:
        self.shortest_s = shortest_s
        self.longest_s = longest_s
        self._last: tuple[int, float] | None = None
        self._speed = 0.0  # bytes per second, never negative

    def note(self, used_bytes: int, now: float) -> None:
        """Take one reading into account."""
        last, self._last = self._last, (used_bytes, now)
        if last is None or now <= last[1]:
            return
        speed = max(0.0, (used_bytes - last[0]) / (now - last[1]))
        self._speed = max(speed, self._speed * _FADES_BY)

    def seconds(self, room_bytes: float, entry_bytes: float, *, is_short: bool, is_pending: bool) -> float:
        """Return the seconds until the next look.

        Args:
            room_bytes: what is left to the next threshold; may be negative or infinite.
            entry_bytes: that threshold, as used bytes; may be infinite.
            is_short: whether the level is above `NORMAL`.
            is_pending: whether one sample waits to be confirmed by a second one.
        """
        if is_pending:
            return self.shortest_s

        wait = min(self.longest_s, WHILE_SHORT_S) if is_short else self.longest_s
        if room_bytes < entry_bytes < float("inf"):
            # In the last tenth before a threshold the waits shrink with the distance, however still it is now.
            wait = min(wait, 10 * self.longest_s * max(0.0, room_bytes) / entry_bytes) if not is_short else wait
        if self._speed > 0 and room_bytes > 0:
            wait = min(wait, room_bytes / self._speed / LOOKS_BEFORE_THE_THRESHOLD)
        return max(wait, self.shortest_s)


_ROOM_EVERY_S: Final = 5.0  # it costs some hundred microseconds, so it is read more often only where it decides


@record
class Look:
    """One reading and what it means.

    Attributes:
        reading: what was read.
        before: the level before it.
        after: the level after it.
        is_short: whether memory is above the exit of the present level, that being above `NORMAL`.
        exit_bytes: the use below which the present level is not held any more; the present use at `NORMAL`.
        threshold_bytes: the threshold that was passed where the level changed, as used bytes; else 0.
    """

    reading: Reading
    before: Level
    after: Level
    is_short: bool
    exit_bytes: int
    threshold_bytes: int


class Lookout:
    """What is known of memory, and the level that follows from it."""

    def __init__(self, gauges: MemorySource, thresholds: Thresholds, machine: LevelMachine, pace: Pace) -> None:
        self._gauges = gauges
        self._thresholds = thresholds
        self._machine = machine
        self._pace = pace
        self._lock = threading.RLock()  # a finaliser, or a signal handler, may look in the middle of a look
        self._is_looking = False
        self._newest: tuple[int, float] | None = None
        self._room_at = -inf
        self._sample_again_at = -inf
        self.limit = gauges.limit()
        self.marks: Marks = thresholds.marks(self.limit.value_bytes)
        self.headroom: Headroom | None = None
        self.interval_s = pace.shortest_s
        self.level_since = gauges.clock()
        self.entered = dict.fromkeys(Level, 0)
        self.looks = 0
        self.missed = 0
        # A use below this can change nothing; what every sampled operation is held against.
        self.quiet_below: float = -inf

    @property
    def level(self) -> Level:
        """How short memory is."""
        return self._machine.level

    @property
    def reading(self) -> Reading | None:
        """The newest reading, None before the first."""
        newest = self._newest
        return None if newest is None else Reading(newest[0], self.limit.value_bytes, newest[1])

    def sample(self) -> bool:
        """Take the quick look of an operation: one reading, one comparison; return whether a full look is due.

        Raises:
            OSError: when the system refuses the reading.
        """
        gauges = self._gauges
        used, now = gauges.used(), gauges.clock()
        self._newest = used, now
        if used < self.quiet_below or now < self._sample_again_at:
            self.looks += 1
            return False
        self._sample_again_at = now + self._pace.shortest_s
        return True

    def look(self, *, waits: bool = False, with_room: bool = False) -> Look | None:
        """Read, judge, and move the level.

        Args:
            waits: whether to wait for another thread that is looking; else None is returned then.
            with_room: whether to read the headroom where it does not decide, if it was not read lately.

        Raises:
            OSError: when the system refuses the reading.
        """
        if not self._lock.acquire(blocking=waits):
            return None
        try:
            if self._is_looking:
                return None
            self._is_looking = True
            try:
                return self._look(with_room)
            finally:
                self._is_looking = False
        finally:
            self._lock.release()

    def allowance(self, used_bytes: int) -> tuple[int, float] | None:
        """Return the use and the most that may be used, in bytes; None while the highest level holds.

        Args:
            used_bytes: what is in use now.
        """
        marks, room = self.marks, None
        if marks.need_room:
            room = self._room(self._gauges.clock(), with_room=False)
        highest = marks.highest
        if self.level >= highest and marks.judge(used_bytes, room).held >= highest:
            return None
        return used_bytes, marks.entry_use(highest, used_bytes, room)

    @property
    def shortest_s(self) -> float:
        """The shortest time between two looks of the beat, in seconds."""
        return self._pace.shortest_s

    def renew(self) -> None:
        """Forget who was looking, and have the next sample look: in a forked child nobody else does."""
        self._lock = threading.RLock()
        self._is_looking = False
        self.quiet_below = -inf
        self._sample_again_at = -inf

    def _look(self, with_room: bool) -> Look:
        before = self._machine.level
        reading, room, standing = self._read_and_judge(with_room)
        if self._machine.needs_second_look and standing.reached is Level.CRITICAL:
            # One sample may be a glitch, and so near the wall nobody waits for the beat to tell.
            reading, room, standing = self._read_and_judge(with_room)

        after = self._machine.level
        if after != before:
            self.entered[after] += 1
            self.level_since = reading.at
        self._plan(reading, room)
        used, passed = reading.used_bytes, max(before, after)
        return Look(
            reading=reading,
            before=before,
            after=after,
            is_short=after > Level.NORMAL and standing.held >= after,
            exit_bytes=self.marks.exit_use(after, used, room) if after in self.marks.by_level else used,
            threshold_bytes=self.marks.entry_use(passed, used, room) if after != before else 0,
        )

    def _read_and_judge(self, with_room: bool) -> tuple[Reading, int | None, Standing]:
        try:
            used = self._gauges.used()
        except OSError:
            self.missed += 1
            raise
        now = self._gauges.clock()
        self._note_limit()
        room = self._room(now, with_room)
        standing = self.marks.judge(used, room)
        self._machine.observe(standing, now)
        self._newest = used, now
        self.looks += 1
        return Reading(used, self.limit.value_bytes, now), room, standing

    def _note_limit(self) -> None:
        try:
            limit: Limit = self._gauges.limit()
            if limit.value_bytes != self.limit.value_bytes:
                self.marks = self._thresholds.marks(limit.value_bytes)
            self.limit = limit
        except ConfigError:
            # MEMTOOLS_LIMIT was changed into no size, or the limit is not known any more: the last one holds.
            return

    def _room(self, now: float, with_room: bool) -> int | None:
        """Return the room, where it decides."""
        needed = self.marks.need_room
        if needed or (with_room and now - self._room_at >= _ROOM_EVERY_S):
            self._room_at = now
            try:
                self.headroom = self._gauges.headroom()
            except (OSError, ConfigError):
                self.headroom = None
        return self.headroom.value_bytes if needed and self.headroom is not None else None

    def _plan(self, reading: Reading, room: int | None) -> None:
        level, used = self._machine.level, reading.used_bytes
        is_settled = level is Level.NORMAL and not self._machine.needs_second_look
        to_next = self.marks.room_to_next(level, used, room)
        self.quiet_below = used + to_next if is_settled else -inf

        self._pace.note(used, reading.at)
        self.interval_s = self._pace.seconds(
            to_next,
            used + to_next,
            is_short=level > Level.NORMAL,
            is_pending=self._machine.needs_second_look,
        )
