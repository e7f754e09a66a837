"""The sampler: readings, the level, and the time until the next sample."""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.monitor._levels import Assessment, LevelBounds, LevelMachine, Thresholds
from memtools.readings import Headroom, Level, Limit, Reading, effective_limit, headroom, resident_bytes

# A sample costs some microseconds, one with headroom some hundred: 5 s apart that is under 0.01 % of a core, 50 ms
# apart under 1 %, which is only paid while memory fills fast or is short.
MIN_INTERVAL_S: Final = 0.05
MAX_INTERVAL_S: Final = 5.0
SAMPLES_BEFORE_THRESHOLD: Final = 4  # at the present speed
MAX_INTERVAL_WHILE_SHORT_S: Final = 1.0  # so that a dwell time of 10 s is made of ten samples
_SPEED_DECAY: Final = 0.5  # a burst is remembered for a few samples
_RATE_S: Final = 60.0
_HEADROOM_INTERVAL_S: Final = 5.0  # where headroom does not decide the level


@record
class MemorySource:
    """Where a monitor's figures come from; a test, or a rehearsal of an emergency, passes a scripted one.

    Attributes:
        used: returns the bytes in use by this process; called on every sampled operation, so it must be cheap and safe
            from any thread. May raise OSError.
        limit: returns the effective limit; called for every sample.
        headroom: returns what is left below the nearest limit; called by the sampling loop.
        clock: monotonic seconds.
    """

    used: Callable[[], int]
    limit: Callable[[], Limit]
    headroom: Callable[[], Headroom]
    clock: Callable[[], float]


def process_source(limit: int | str | None = None) -> MemorySource:
    """Return the source of this process; `limit` is that of `memtools.readings.effective_limit`."""
    return MemorySource(resident_bytes, partial(effective_limit, limit), partial(headroom, limit), time.monotonic)


@record
class Sample:
    """One reading and what it means.

    Attributes:
        reading: what was read.
        before: the level before it.
        after: the level after it.
        is_short: whether memory is above the exit of the present level, that being above `NORMAL`.
        exit_bytes: the use below which the present level is left; the present use at `NORMAL`.
        threshold_bytes: the threshold that was passed where the level changed, as used bytes; else 0.
        headroom: what is left below the nearest limit, where that decides the higher of the two levels; else None.
        entry_free_bytes: the headroom that enters this level; 0 where headroom does not decide.
        exit_free_bytes: the headroom above which it is left; 0 where headroom does not decide.
        is_blind: whether the headroom decides and is not known.
    """

    reading: Reading
    before: Level
    after: Level
    is_short: bool
    exit_bytes: int
    threshold_bytes: int
    headroom: Headroom | None
    entry_free_bytes: int
    exit_free_bytes: int
    is_blind: bool


class GrowthRate:
    """How fast use has grown over the last minute, from one reading a second at most."""

    __slots__ = ("_readings",)

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=int(_RATE_S) + 1)

    def observe(self, used_bytes: int, now: float) -> None:
        """Take one reading into account."""
        readings = self._readings
        while readings and now - readings[0][0] > _RATE_S and len(readings) > 1:
            readings.popleft()
        if not readings or now - readings[-1][0] >= 1.0:
            readings.append((now, used_bytes))

    def bytes_per_s(self, used_bytes: int, now: float) -> float | None:
        """Return the rate up to a reading; None before the first second is over."""
        if not self._readings or now - self._readings[0][0] < 1.0:
            return None
        at, used = self._readings[0]
        return (used_bytes - used) / (now - at)


class SamplingInterval:
    """The seconds until the next sample, from the speed at which memory fills and the nearness of a threshold."""

    __slots__ = ("_last", "_speed", "max_s", "min_s")

    def __init__(self, min_s: float = MIN_INTERVAL_S, max_s: float = MAX_INTERVAL_S) -> None:
        self.min_s = min_s
        self.max_s = max_s
        self._last: tuple[int, float] | None = None
        self._speed = 0.0  # bytes per second, never negative

    def observe(self, used_bytes: int, now: float) -> None:
        """Take one reading into account."""
        last, self._last = self._last, (used_bytes, now)
        if last is None or now <= last[1]:
            return
        speed = max(0.0, (used_bytes - last[0]) / (now - last[1]))
        self._speed = max(speed, self._speed * _SPEED_DECAY)

    def seconds(self, bytes_to_next: float, entry_bytes: float, *, is_short: bool, is_pending: bool) -> float:
        """Return the seconds until the next sample.

        Args:
            bytes_to_next: what is left to the next threshold; may be negative or infinite.
            entry_bytes: that threshold, as used bytes; may be infinite.
            is_short: whether the level is above `NORMAL`.
            is_pending: whether one sample waits to be confirmed by a second one.
        """
        if is_pending:
            return self.min_s

        wait = min(self.max_s, MAX_INTERVAL_WHILE_SHORT_S) if is_short else self.max_s
        if not is_short and bytes_to_next < entry_bytes < inf:
            # In the last tenth before a threshold the interval shrinks with the distance, however steady memory is.
            wait = min(wait, 10 * self.max_s * max(0.0, bytes_to_next) / entry_bytes)
        if self._speed > 0 and bytes_to_next > 0:
            wait = min(wait, bytes_to_next / self._speed / SAMPLES_BEFORE_THRESHOLD)
        return max(wait, self.min_s)


class Sampler:
    """The newest figures of memory, and the level that follows from them.

    Threads: any may sample; while one does, another leaves it to that one, or waits, as `wait` says.

    Args:
        source: where the figures come from.
        thresholds: where the levels begin.
        machine: the level, with its hysteresis.
        interval: chooses the time until the next sample.
    """

    def __init__(
        self, source: MemorySource, thresholds: Thresholds, machine: LevelMachine, interval: SamplingInterval
    ) -> None:
        self._source = source
        self._thresholds = thresholds
        self._machine = machine
        self._interval = interval
        self._lock = threading.RLock()  # a finaliser, or a signal handler, may sample in the middle of a sample
        self._is_sampling = False
        self._last: tuple[int, float] | None = None
        self._headroom_read_at = -inf
        self._next_sample_at = -inf
        self.limit = source.limit()
        self.bounds: LevelBounds = thresholds.bounds(self.limit.value_bytes)
        self.headroom: Headroom | None = None
        self._entered_by_headroom: set[Level] = set()  # the levels that the headroom entered last, and not the use
        self.interval_s = interval.min_s
        self.due_at = (
            source.clock() + self.interval_s
        )  # when the sampling loop takes the next sample, if it is not late
        self.level_since = source.clock()
        self.entered = dict.fromkeys(Level, 0)
        self.growth = GrowthRate()
        self.samples = 0
        self.failed = 0
        self.is_blind = False  # whether the headroom decides, and the last sample could not read it
        # A use below this changes nothing: the one comparison of a sampled operation.
        self.ignore_below: float = -inf

    @property
    def level(self) -> Level:
        """How short memory is."""
        return self._machine.level

    @property
    def reading(self) -> Reading | None:
        """The newest reading, None before the first."""
        last = self._last
        return None if last is None else Reading(last[0], self.limit.value_bytes, last[1])

    @property
    def min_interval_s(self) -> float:
        """The shortest time between two samples of the sampling loop, in seconds."""
        return self._interval.min_s

    def change_thresholds(self, thresholds: Thresholds) -> None:
        """Use other thresholds from the next sample on."""
        self._thresholds = thresholds
        self.bounds = thresholds.bounds(self.limit.value_bytes)
        self.ignore_below = -inf

    @property
    def is_pending(self) -> bool:
        """Whether one sample waits to be confirmed by a second one."""
        return self._machine.needs_confirmation

    def expect_sample(self) -> None:
        """Expect the next sample from now on: the sampling loop starts."""
        self.due_at = self._source.clock() + self.interval_s

    def is_sample_due(self) -> bool:
        """Take one reading for an operation, and return whether a full sample is due.

        Raises:
            OSError: when the system refuses the reading.
        """
        source = self._source
        used, now = source.used(), source.clock()
        self._last = used, now
        if used < self.ignore_below or now < self._next_sample_at:
            self.samples += 1
            return False
        self._next_sample_at = now + self._interval.min_s
        return True

    def sample(self, *, wait: bool = False, with_headroom: bool = False) -> Sample | None:
        """Read, assess, and move the level.

        Args:
            wait: whether to wait for another thread that is sampling; else None is returned then.
            with_headroom: whether to read the headroom where it does not decide, at most every 5 s.

        Raises:
            OSError: when the system refuses the reading.
        """
        lock = self._lock  # another one, if this process is forked in the middle
        if not lock.acquire(blocking=wait):
            return None
        try:
            if self._is_sampling:
                return None
            self._is_sampling = True
            try:
                return self._sample(with_headroom)
            finally:
                self._is_sampling = False
        finally:
            lock.release()

    def use_and_highest_threshold(self, used_bytes: int) -> tuple[int, float] | None:
        """Return the use and the entry of the highest level, in bytes; None while that level holds.

        Args:
            used_bytes: the present use.
        """
        bounds, free_bytes = self.bounds, None
        if bounds.needs_headroom:
            free_bytes = self._read_headroom(self._source.clock(), with_headroom=False)
        highest = bounds.highest
        if self.level >= highest and bounds.assess(used_bytes, free_bytes).held >= highest:
            return None
        return used_bytes, bounds.entry_bytes(highest, used_bytes, free_bytes)

    def after_fork(self) -> None:
        """Forget a thread of the parent that was sampling, and have the next operation sample."""
        self._lock = threading.RLock()
        self._is_sampling = False
        self.ignore_below = -inf
        self._next_sample_at = -inf

    def _sample(self, with_headroom: bool) -> Sample:
        before = self._machine.level
        reading, free_bytes, assessment = self._read_and_assess(with_headroom)
        if self._machine.needs_confirmation and assessment.reached is Level.CRITICAL:
            # One sample may be a glitch; but this near the limit the second one cannot wait for the next tick.
            reading, free_bytes, assessment = self._read_and_assess(with_headroom)

        after = self._machine.level
        if after != before:
            self.entered[after] += 1
            self.level_since = reading.at
        self._schedule(reading, free_bytes)
        self.is_blind = self.bounds.needs_headroom and free_bytes is None
        used, passed = reading.used_bytes, max(before, after)
        entry_free, exit_free = self.bounds.free_bytes(passed)
        return Sample(
            reading=reading,
            before=before,
            after=after,
            is_short=after > Level.NORMAL and assessment.held >= after,
            exit_bytes=self.bounds.exit_bytes(after, used, free_bytes) if after in self.bounds.by_level else used,
            threshold_bytes=self.bounds.entry_bytes(passed, used, free_bytes) if after != before else 0,
            headroom=self.headroom if self._is_by_headroom(passed) else None,
            entry_free_bytes=entry_free,
            exit_free_bytes=exit_free,
            is_blind=self.is_blind,
        )

    def _is_by_headroom(self, level: Level) -> bool:
        if level is Level.NORMAL:
            return self.bounds.needs_only_headroom
        return level in self._entered_by_headroom

    def _read_and_assess(self, with_headroom: bool) -> tuple[Reading, int | None, Assessment]:
        self.due_at = self._source.clock() + self.interval_s  # also where the reading fails
        try:
            used = self._source.used()
        except OSError:
            self.failed += 1
            raise
        now = self._source.clock()
        self._refresh_limit()
        free_bytes = self._read_headroom(now, with_headroom)
        assessment = self.bounds.assess(used, free_bytes)
        before = self._machine.level
        if self.bounds.needs_headroom and free_bytes is None:
            # What is not known is not room: the level holds until the headroom can be read again.
            assessment = Assessment(assessment.reached, max(assessment.held, before))
        after = self._machine.observe(assessment, now)
        if after is not None and after > before:
            self._note_entries(before, after, used, free_bytes)
        self._last = used, now
        self.samples += 1
        return Reading(used, self.limit.value_bytes, now), free_bytes, assessment

    def _note_entries(self, before: Level, after: Level, used: int, free_bytes: int | None) -> None:
        for level in Level:
            if before < level <= after:
                self._entered_by_headroom.discard(level)
                if self.bounds.is_entered_by_headroom(level, used, free_bytes):
                    self._entered_by_headroom.add(level)

    def _refresh_limit(self) -> None:
        try:
            limit: Limit = self._source.limit()
            if limit.value_bytes != self.limit.value_bytes:
                self.bounds = self._thresholds.bounds(limit.value_bytes)
            self.limit = limit
        except ConfigError:
            # MEMTOOLS_LIMIT is no size any more, or the limit is not known any more: the last one stays in force.
            return

    def _read_headroom(self, now: float, with_headroom: bool) -> int | None:
        """Return the headroom where it decides the level, else None."""
        decides = self.bounds.needs_headroom
        if decides or (with_headroom and now - self._headroom_read_at >= _HEADROOM_INTERVAL_S):
            self._headroom_read_at = now
            try:
                self.headroom = self._source.headroom()
            except (OSError, ConfigError):
                self.headroom = None
        return self.headroom.value_bytes if decides and self.headroom is not None else None

    def _schedule(self, reading: Reading, free_bytes: int | None) -> None:
        level, used = self._machine.level, reading.used_bytes
        is_settled = level is Level.NORMAL and not self._machine.needs_confirmation
        to_next = self.bounds.bytes_to_next(level, used, free_bytes)
        self.ignore_below = used + to_next if is_settled else -inf

        self._interval.observe(used, reading.at)
        self.growth.observe(used, reading.at)
        self.interval_s = self._interval.seconds(
            to_next,
            used + to_next,
            is_short=level > Level.NORMAL,
            is_pending=self._machine.needs_confirmation,
        )
        self.due_at = reading.at + self.interval_s
