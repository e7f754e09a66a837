"""Give memory back, step by step, the cheapest first, and never for longer than a small share of wall time.

Covers: who may climb and when, the loop's turn between two slices, telling that it was done.
Leaves to others: the level and the exit, and what to do when a climb was not enough (`memtools.monitor`), what each
step does (`_trim`, `_collect`, `_trim_heap`, the user).
"""

import asyncio
import logging
import random as _random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast

from memtools._forks import register_object_after_fork
from memtools._safe_calls import CircuitBreaker, RateLimitedLogger
from memtools.cleanup._registry import SlicedStep, Step, known_bytes
from memtools.cleanup._statistics import ReclaimerStatistics, ReclaimResult, StepResult, StepStatistics
from memtools.cleanup._steps import ShrinkRegistered
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, emit
from memtools.readings import Level
from memtools.units import parse_seconds

# One step's place on the ladder: when it may be taken again, and how it fared.
#
# Covers: the cooldown, the circuit breaker, the figures of all climbs.
# Leaves to others: taking it (`_taking`).

_log = logging.getLogger("memtools.cleanup")


class Rung:
    """A step on one ladder. Times are seconds of the ladder's clock.

    Attributes:
        step: what is done here.
        is_unfinished: whether time ran out when it was last taken.
    """

    __slots__ = (
        "_breaker",
        "_failures",
        "_freed_bytes",
        "_longest_s",
        "_overruns",
        "_rests_until",
        "_failure_log",
        "_spent_s",
        "_taken",
        "_taken_at_level",
        "is_unfinished",
        "step",
    )

    def __init__(self, step: Step) -> None:
        self.step = step
        self.is_unfinished = False
        self._breaker = CircuitBreaker()
        self._failure_log = RateLimitedLogger(_log)
        self._rests_until = float("-inf")
        self._taken_at_level = Level.NORMAL
        self._taken = 0
        self._freed_bytes = 0
        self._spent_s = 0.0
        self._longest_s = 0.0
        self._failures = 0
        self._overruns = 0

    def is_held(self, level: Level, now: float) -> bool:
        """Whether it must not be taken now: it was a moment ago at this level or a higher one, or it keeps failing."""
        is_resting = now < self._rests_until and level <= self._taken_at_level
        return is_resting or self._breaker.is_open(now)

    def rest(self, level: Level, until: float) -> None:
        """Not be taken again at `level`, or at a lower one, before `until`."""
        self._taken_at_level = level
        self._rests_until = until

    def count_slice(self, freed_bytes: int, took_s: float, *, is_first: bool) -> None:
        """Add what one slice did."""
        self._taken += is_first
        self._freed_bytes += freed_bytes
        self._spent_s += took_s
        self._longest_s = max(self._longest_s, took_s)

    def count_overrun(self) -> None:
        """Add a call that returned late."""
        self._overruns += 1

    def succeeded(self) -> None:
        """Close the circuit breaker."""
        self._breaker.record_success()

    def failed(self, now: float) -> None:
        """Log the exception that is being handled, now and then, and count it."""
        self._failures += 1
        self._breaker.record_failure(now)
        self._failure_log.error("failed", "clean-up step %r failed; the ladder goes on", _name(self.step))

    def statistics(self, now: float) -> StepStatistics:
        """Return how the step fared."""
        return StepStatistics(
            name=_name(self.step),
            taken=self._taken,
            freed_bytes=self._freed_bytes,
            spent_s=self._spent_s,
            longest_slice_s=self._longest_s,
            failures=self._failures,
            overruns=self._overruns,
            is_left_out=self._breaker.is_open(now),
        )


def _name(step: Step) -> str:
    return str(step.name)


# Clean-up may take a small share of wall time and no more.
#
# Covers: what may be spent now.
# Leaves to others: what it is spent on (`_ladder`).

_GRANTED_S = 15.0  # wall time whose share is granted in advance, or nothing could be done in the first seconds
_KEPT_S = 60.0  # wall time whose share is kept at most: after a quiet hour the loop must not be stopped for minutes


class TokenBucket:
    """A purse that fills at the pace of wall time.

    The share of the first 15 seconds is there from the beginning, and so none comes in during them: from then on, what
    was spent is never more than the share of all wall time since, but for the last expense, which may overdraw the
    purse and is paid back before the next.

    Args:
        share: of wall time, above 0 and up to 1.
        now: the time, in seconds of a monotonic clock.
    """

    __slots__ = ("_credit_s", "_filled_at", "_share", "spent_s")

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._credit_s = share * _GRANTED_S
        self._filled_at = now + _GRANTED_S
        self.spent_s: float = 0.0

    def available_s(self, now: float) -> float:
        """Return what may be spent now, in seconds; 0 or less means that nothing may."""
        if now > self._filled_at:
            self._credit_s = min(self._credit_s + self._share * (now - self._filled_at), self._share * _KEPT_S)
            self._filled_at = now
        return self._credit_s

    def spend(self, seconds: float) -> None:
        """Take what was spent out of the purse."""
        self._credit_s -= seconds
        self.spent_s += seconds


# Take one step, slice by slice; whatever it raises harms nobody.
#
# Leaves to others: which step comes next (`_ascent`), when it may come again (`_rung`).

_GRACE_S = 0.05  # a thread that waits for the GIL may be that late without being slow


class Taking:
    """One step of one climb.

    Args:
        rung: the step, its breaker and its figures.
        level: how short memory is.
        share: what may be spent, and is spent.
        clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_duration_s", "_freed_bytes", "_rung", "_share", "_slices", "_taken")

    def __init__(self, rung: Rung, level: Level, share: TokenBucket, clock: Callable[[], float]) -> None:
        self._rung = rung
        self._share = share
        self._clock = clock
        self._taken = 0
        self._freed_bytes = 0
        self._duration_s = 0.0
        self._slices = self._slices_of(rung.step, level)

    def advance(self) -> bool:
        """Do one slice; return whether there was one to do."""
        began = self._clock()
        freed_bytes = self._next()
        took_s = self._clock() - began

        # To find that there was nothing to do takes its time as well.
        self._duration_s += took_s
        self._share.spend(took_s)
        if freed_bytes is None:
            self._rung.count_slice(0, took_s, is_first=False)
            return False
        self._rung.count_slice(freed_bytes, took_s, is_first=not self._taken)
        self._freed_bytes += freed_bytes
        self._taken += 1
        return True

    def close(self) -> None:
        """Leave it as it stands, in the middle or at its end."""
        try:
            self._slices.close()
        except Exception:
            self._rung.failed(self._clock())

    def outcome(self) -> StepResult | None:
        """Return what the step did; None where it had nothing to do."""
        if not self._taken:
            return None
        return StepResult(str(self._rung.step.name), self._freed_bytes, self._duration_s)

    def _next(self) -> int | None:
        try:
            return known_bytes(next(self._slices))
        except StopIteration:
            if self._taken:
                self._rung.succeeded()
        except Exception:
            self._taken += 1
            self._rung.failed(self._clock())
        return None

    def _slices_of(self, step: Step, level: Level) -> Generator[int, None, None]:
        if isinstance(step, SlicedStep):
            yield from step.slices(level, self._left)
            return

        deadline = self._clock() + self._left()
        freed_bytes = step(level, deadline)
        if self._clock() > deadline + _GRACE_S:
            self._rung.count_overrun()
        yield freed_bytes

    def _left(self) -> float:
        return self._share.available_s(self._clock())


# One climb: step after step until usage is low enough, time has run out or the end is reached.
#
# Covers: the order, the re-reads, what the climb amounts to.
# Leaves to others: who may climb and when (`_ladder`), taking one step (`_taking`).


class Ascent:
    """One climb, walked slice by slice; between two slices others may have their turn.

    Args:
        rungs: the steps, the cheapest first.
        level: how short memory is.
        stop_below: the exit, in bytes.
        read: returns what is in use, in bytes.
        share: what may be spent.
        clock: monotonic seconds.
        rest_s: how long the steps that are taken rest from now on, in seconds; one figure, so that they are ready again
            at the same time.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        level: Level,
        stop_below: int,
        *,
        read: Callable[[], int],
        share: TokenBucket,
        clock: Callable[[], float],
        rest_s: float,
    ) -> None:
        self._rungs = [rung for rung in rungs if rung.step.least <= level]
        self._level = level
        self._stop_below = stop_below
        self._read = read
        self._share = share
        self._clock = clock
        self._taken: list[StepResult] = []
        self._has_passed_all = False
        self._began_at = clock()
        self._rests_until = self._began_at + rest_s
        self._before_bytes = self._after_bytes = read()

    def slices(self) -> Generator[None, None, None]:
        """Climb; every turn of this iterator is one slice."""
        for rung in self._rungs:
            if self._is_below():
                return
            if rung.is_held(self._level, self._clock()):
                continue
            if self._left() <= 0:
                return
            yield from self._take(rung)
        self._has_passed_all = not any(rung.is_unfinished for rung in self._rungs)

    def outcome(self) -> ReclaimResult | None:
        """Return what the climb did; None where nothing was needed to be done and could not be."""
        is_effective = self._is_below()
        if not self._taken and not is_effective:
            return None
        return ReclaimResult(
            level=self._level,
            before_bytes=self._before_bytes,
            after_bytes=self._after_bytes,
            steps=tuple(self._taken),
            duration_s=self._clock() - self._began_at,
            is_effective=is_effective,
            exhausted=self._has_passed_all and not is_effective,
        )

    def _take(self, rung: Rung) -> Iterator[None]:
        taking = Taking(rung, self._level, self._share, self._clock)
        try:
            while taking.advance():
                # Allocators may hand pages back late: look again before more is given up than is needed.
                self._after_bytes = self._read()
                yield
                if self._is_below() or self._left() <= 0:
                    break
        finally:
            taking.close()
            self._end(rung, taking)

    def _end(self, rung: Rung, taking: Taking) -> None:
        taken = taking.outcome()
        if taken is None:
            return
        self._taken.append(taken)
        rung.is_unfinished = self._left() <= 0
        rung.rest(self._level, self._rests_until)

    def _is_below(self) -> bool:
        return self._after_bytes < self._stop_below

    def _left(self) -> float:
        return self._share.available_s(self._clock())


_JITTER = 0.2  # of the cooldown, so that the processes of one machine do not clean up in step


class Reclaimer:
    """Steps that give memory back, taken one after the other until usage is low enough.

    >>> from memtools.cleanup import Reclaimer, default_steps
    >>> from memtools.readings import Level, resident_bytes
    >>> ladder = Reclaimer(default_steps(), read=resident_bytes)
    >>> climb = ladder.climb(Level.WARNING, stop_below=resident_bytes() + 1)
    >>> climb.is_effective, climb.steps
    (True, ())

    Args:
        steps: what is done, the cheapest first; those whose `least` is above the level are passed over.
        read: returns what is in use, in bytes; asked before the first step and after each slice.
        share: of wall time, the most that all steps together take.
        cooldown: seconds for which a step rests from the beginning of the climb in which it was taken, and up to a
            fifth more by chance. A higher level does not wait.
        clock: monotonic seconds.
        random: returns a number from 0 to 1.

    Raises:
        ConfigError: for an argument that makes no sense.

    Threads: safe; while one climbs, the others get None. Fork: a child may climb at once, whoever was climbing.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        read: Callable[[], int],
        share: float = 0.05,
        cooldown: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._rungs = tuple(Rung(_checked(step)) for step in steps)
        self._read = read
        self._share = TokenBucket(_parse_share(share), clock())
        self._cooldown_s = parse_seconds(cooldown, name="cooldown")
        self._clock = clock
        self._random = random
        self._climbs = 0
        self._effective = 0
        self._held_back = 0
        self._lock = threading.Lock()
        register_object_after_fork(self, Reclaimer._renew_after_fork)

    def reclaim(self, level: Level, stop_below: int) -> ReclaimResult | None:
        """Take the steps of `level` until less than `stop_below` bytes are in use.

        `CleanupEnded` is told, unless there was nothing to do.

        Returns:
            What was done; None where it was held back: another climb is going on, every step was taken a moment ago,
            or the share of wall time is used up.

        Raises:
            ReadingError: what `read` raises.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._held_back += 1
            return None

        try:
            ascent = self._ascent(level, stop_below)
            for _ in ascent.slices():
                pass
        finally:
            lock.release()
        return self._told(ascent)

    async def reclaim_async(self, level: Level, stop_below: int) -> ReclaimResult | None:
        """Do as `climb` does, in slices; between two of them the loop has its turn.

        A full collection, a heap trim and a step of the user are one slice each.

        Returns:
            As `climb`.

        Raises:
            ReadingError: what `read` raises.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._held_back += 1
            return None

        try:
            ascent = self._ascent(level, stop_below)
            slices = ascent.slices()
            try:
                for _ in slices:
                    await asyncio.sleep(0)
            finally:
                slices.close()  # a climb that was cancelled ends here, not when somebody collects it
        finally:
            lock.release()
        return self._told(ascent)

    def statistics(self) -> ReclaimerStatistics:
        """Return how the ladder and its steps fared so far."""
        now = self._clock()
        steps = tuple(rung.statistics(now) for rung in self._rungs)
        trims = (rung.step for rung in self._rungs if isinstance(rung.step, ShrinkRegistered))
        trim = next(trims, None)
        return ReclaimerStatistics(
            passes=self._climbs,
            effective=self._effective,
            throttled=self._held_back,
            freed_bytes=sum(step.freed_bytes for step in steps),
            spent_s=self._share.spent_s,
            budget_left_s=max(self._share.available_s(now), 0.0),
            steps=steps,
            shrink=None if trim is None else trim.statistics(),
        )

    def _ascent(self, level: Level, stop_below: int) -> Ascent:
        return Ascent(
            self._rungs,
            level,
            stop_below,
            read=self._read,
            share=self._share,
            clock=self._clock,
            rest_s=self._cooldown_s * (1 + _JITTER * self._random()),
        )

    def _told(self, ascent: Ascent) -> ReclaimResult | None:
        climb = ascent.outcome()
        if climb is None:
            self._held_back += 1
            return None

        self._climbs += 1
        self._effective += climb.is_effective
        if climb.steps:
            steps = tuple((step.name, step.freed_bytes, step.duration_s) for step in climb.steps)
            emit(CleanupEnded(climb.level, climb.before_bytes, climb.after_bytes, steps, climb.duration_s))
        return climb

    def _renew_after_fork(self) -> None:
        # Held for ever, if another thread was climbing. Whoever forked in the middle of a climb releases the old one.
        self._lock = threading.Lock()


def _parse_share(share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigError("share", share, "a share of wall time above 0 and up to 1, such as 0.05")
    return float(share)


def _checked(step: object) -> Step:
    is_step = callable(step) and isinstance(getattr(step, "name", None), str)
    if not is_step or not isinstance(getattr(step, "least", None), Level):
        accepted = "steps, each a callable (level, deadline) -> bytes given back with a name and a least level"
        raise ConfigError("steps", step, accepted)
    return cast("Step", step)
