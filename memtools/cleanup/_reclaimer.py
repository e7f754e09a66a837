"""Run clean-up steps in order of cost, within a small share of wall time."""

import asyncio
import logging
import random as _random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, cast

from memtools._forks import register_object_after_fork
from memtools._safe_calls import CircuitBreaker, RateLimitedLogger
from memtools.cleanup._registry import SlicedStep, Step, checked_bytes
from memtools.cleanup._statistics import ReclaimerStatistics, ReclaimResult, StepResult, StepStatistics
from memtools.cleanup._steps import ShrinkRegistered
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, emit
from memtools.readings import Level
from memtools.units import parse_seconds

_JITTER: Final = 0.2  # of the cooldown, so that the processes of one machine do not clean up at the same moment
_INITIAL_GRANT_S: Final = 15.0  # wall time whose share is granted at once: steps can run in the first seconds
_CAPACITY_S: Final = 60.0  # wall time whose share is saved at most: an idle hour must not allow a pause of minutes
_LATE_S: Final = 0.05  # a step that waits for the GIL may return this late without being slow

_log = logging.getLogger("memtools.cleanup")


class Reclaimer:
    """Steps that give memory back, run one after the other until usage is low enough.

    >>> from memtools.cleanup import Reclaimer, default_steps
    >>> from memtools.readings import Level, resident_bytes
    >>> reclaimer = Reclaimer(default_steps(), read=resident_bytes)
    >>> result = reclaimer.reclaim(Level.WARNING, stop_below=resident_bytes() + 1)
    >>> result.is_effective, result.steps
    (True, ())

    Args:
        steps: the steps, the cheapest first; a step whose `min_level` is above the level does not run.
        read: returns the memory in use, in bytes; called before the first step and after each slice.
        share: the share of wall time that all steps together may take.
        cooldown: seconds for which a step does not run again, counted from the start of the pass in which it ran;
            up to a fifth is added at random. A higher level does not wait for the cooldown.
        clock: monotonic seconds.
        random: returns a number from 0 to 1.

    Raises:
        ConfigError: for an argument that makes no sense.

    Threads: safe; while one thread or task reclaims, every other call returns None. Fork: a child can reclaim at
    once, even if it was forked in the middle of a pass.
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
        self._states = tuple(_StepState(_checked_step(step), clock) for step in steps)
        self._read = read
        self._bucket = TokenBucket(_parse_share(share), clock())
        self._cooldown_s = parse_seconds(cooldown, name="cooldown")
        self._clock = clock
        self._random = random
        self._passes = 0
        self._effective = 0
        self._throttled = 0
        self._lock = threading.Lock()
        register_object_after_fork(self, Reclaimer._renew_after_fork)

    def reclaim(self, level: Level, stop_below: int) -> ReclaimResult | None:
        """Run the steps of `level` until less than `stop_below` bytes are in use.

        Emits `CleanupEnded` if at least one step ran.

        Returns:
            What was done; None if the call was throttled: another pass is running, every step is cooling down, or the
            share of wall time is used up.

        Raises:
            ReadingError: raised by `read`.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._throttled += 1
            return None

        try:
            current = self._new_pass(level, stop_below)
            for _ in current.slices():
                pass
        finally:
            lock.release()
        return self._finish(current)

    async def reclaim_async(self, level: Level, stop_below: int) -> ReclaimResult | None:
        """Do the same as `reclaim`, and return to the event loop between two slices.

        A full collection, a heap trim and a step that is only a call cannot be divided: each of them is one slice.

        Returns:
            The same as `reclaim`.

        Raises:
            ReadingError: raised by `read`.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._throttled += 1
            return None

        try:
            current = self._new_pass(level, stop_below)
            slices = current.slices()
            try:
                for _ in slices:
                    await asyncio.sleep(0)
            finally:
                slices.close()  # a cancelled pass ends here, not when the generator is collected
        finally:
            lock.release()
        return self._finish(current)

    def statistics(self) -> ReclaimerStatistics:
        """Return the counters of the reclaimer and its steps."""
        now = self._clock()
        steps = tuple(state.statistics(now) for state in self._states)
        shrinking = (state.step for state in self._states if isinstance(state.step, ShrinkRegistered))
        shrink = next(shrinking, None)
        return ReclaimerStatistics(
            passes=self._passes,
            effective=self._effective,
            throttled=self._throttled,
            freed_bytes=sum(step.freed_bytes for step in steps),
            spent_s=self._bucket.spent_s,
            budget_left_s=max(self._bucket.available_s(now), 0.0),
            steps=steps,
            shrink=None if shrink is None else shrink.statistics(),
        )

    def _new_pass(self, level: Level, stop_below: int) -> "_Pass":
        return _Pass(
            self._states,
            level,
            stop_below,
            read=self._read,
            bucket=self._bucket,
            clock=self._clock,
            cooldown_s=self._cooldown_s * (1 + _JITTER * self._random()),
        )

    def _finish(self, current: "_Pass") -> ReclaimResult | None:
        result = current.result()
        if result is None:
            self._throttled += 1
            return None

        self._passes += 1
        self._effective += result.is_effective
        if result.steps:
            steps = tuple((step.name, step.freed_bytes, step.duration_s) for step in result.steps)
            emit(CleanupEnded(result.level, result.before_bytes, result.after_bytes, steps, result.duration_s))
        return result

    def _renew_after_fork(self) -> None:
        # Another thread of the parent may have held the lock. If the pass itself forked, it releases the old lock.
        self._lock = threading.Lock()


class TokenBucket:
    """Token bucket that limits clean-up to a share of wall time. Tokens are seconds.

    The share of the first 15 seconds is available from the start, so no tokens are added during these. After that, all
    seconds spent are at most the share of all wall time, except that the last expense may overdraw the bucket: the
    overdraft is paid back before the next one. The bucket holds at most the share of one minute.

    Args:
        share: of wall time, above 0 and up to 1.
        now: the time, in seconds of a monotonic clock.
    """

    __slots__ = ("_filled_at", "_share", "_tokens_s", "spent_s")

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._tokens_s = share * _INITIAL_GRANT_S
        self._filled_at = now + _INITIAL_GRANT_S
        self.spent_s: float = 0.0

    def available_s(self, now: float) -> float:
        """Return the seconds that may be spent now; 0 or less means none."""
        if now > self._filled_at:
            self._tokens_s = min(self._tokens_s + self._share * (now - self._filled_at), self._share * _CAPACITY_S)
            self._filled_at = now
        return self._tokens_s

    def spend(self, seconds: float) -> None:
        """Take `seconds` out of the bucket."""
        self._tokens_s -= seconds
        self.spent_s += seconds


class _StepState:
    """The cooldown, the circuit breaker and the counters of one step, over all passes.

    Attributes:
        step: the step.
        is_unfinished: whether time ran out when the step last ran.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_cooling_down_until",
        "_failure_log",
        "_failures",
        "_freed_bytes",
        "_longest_s",
        "_overruns",
        "_ran_at_level",
        "_runs",
        "_spent_s",
        "is_unfinished",
        "step",
    )

    def __init__(self, step: Step, clock: Callable[[], float]) -> None:
        self.step = step
        self.is_unfinished = False
        self._clock = clock
        self._breaker = CircuitBreaker()
        self._failure_log = RateLimitedLogger(_log, clock=clock)
        self._cooling_down_until = float("-inf")
        self._ran_at_level = Level.NORMAL
        self._runs = 0
        self._freed_bytes = 0
        self._spent_s = 0.0
        self._longest_s = 0.0
        self._failures = 0
        self._overruns = 0

    def can_run(self, level: Level) -> bool:
        """Return whether the step may run now: it neither cools down nor keeps failing."""
        now = self._clock()
        is_cooling_down = now < self._cooling_down_until and level <= self._ran_at_level
        return not is_cooling_down and not self._breaker.is_open(now)

    def cool_down(self, level: Level, until: float) -> None:
        """Put the step on cooldown for `level` and below until `until`."""
        self._ran_at_level = level
        self._cooling_down_until = until

    def add_slice(self, freed_bytes: int, took_s: float, *, is_first: bool) -> None:
        """Add the figures of one slice."""
        self._runs += is_first
        self._freed_bytes += freed_bytes
        self._spent_s += took_s
        self._longest_s = max(self._longest_s, took_s)

    def add_overrun(self) -> None:
        """Count a call that returned late."""
        self._overruns += 1

    def record_success(self) -> None:
        """Close the circuit breaker."""
        self._breaker.record_success()

    def record_failure(self) -> None:
        """Count the exception that is being handled, and log it at most once a minute."""
        self._failures += 1
        self._breaker.record_failure(self._clock())
        self._failure_log.error("failed", "clean-up step %r failed; the next step runs", self._name)

    def statistics(self, now: float) -> StepStatistics:
        """Return the counters of the step."""
        return StepStatistics(
            name=self._name,
            runs=self._runs,
            freed_bytes=self._freed_bytes,
            spent_s=self._spent_s,
            longest_slice_s=self._longest_s,
            failures=self._failures,
            overruns=self._overruns,
            is_left_out=self._breaker.is_open(now),
        )

    @property
    def _name(self) -> str:
        return str(self.step.name)


class _Pass:
    """One reclaim pass: step after step until usage is low enough, time has run out, or all steps ran.

    Args:
        states: the steps, the cheapest first.
        level: how short memory is.
        stop_below: the target, in bytes.
        read: returns the memory in use, in bytes.
        bucket: limits the time of the steps.
        clock: monotonic seconds.
        cooldown_s: seconds for which the steps that run cool down, all from the start of the pass, so that they are
            ready again at the same time.
    """

    def __init__(
        self,
        states: Sequence[_StepState],
        level: Level,
        stop_below: int,
        *,
        read: Callable[[], int],
        bucket: TokenBucket,
        clock: Callable[[], float],
        cooldown_s: float,
    ) -> None:
        self._states = [state for state in states if state.step.min_level <= level]
        self._level = level
        self._stop_below = stop_below
        self._read = read
        self._bucket = bucket
        self._clock = clock
        self._results: list[StepResult] = []
        self._has_run_all = False
        self._began_at = clock()
        self._cooling_down_until = self._began_at + cooldown_s
        self._before_bytes = self._after_bytes = read()

    def slices(self) -> Generator[None, None, None]:
        """Run the steps; each iteration is one slice."""
        for state in self._states:
            if self._is_below():
                return
            if not state.can_run(self._level):
                continue
            if self._left_s() <= 0:
                return
            yield from self._run_step(state)
        self._has_run_all = not any(state.is_unfinished for state in self._states)

    def result(self) -> ReclaimResult | None:
        """Return what the pass did; None if no step ran and usage is not below the target."""
        is_effective = self._is_below()
        if not self._results and not is_effective:
            return None
        return ReclaimResult(
            level=self._level,
            before_bytes=self._before_bytes,
            after_bytes=self._after_bytes,
            steps=tuple(self._results),
            duration_s=self._clock() - self._began_at,
            is_effective=is_effective,
            exhausted=self._has_run_all and not is_effective,
        )

    def _run_step(self, state: _StepState) -> Iterator[None]:
        run = _StepRun(state, self._level, self._bucket, self._clock)
        try:
            while run.run_slice():
                # Allocators may hand pages back late: read again before more is given up than is needed.
                self._after_bytes = self._read()
                yield
                if self._is_below() or self._left_s() <= 0:
                    break
        finally:
            run.close()
            self._finish_step(state, run.result())

    def _finish_step(self, state: _StepState, result: StepResult | None) -> None:
        if result is None:
            return
        self._results.append(result)
        state.is_unfinished = self._left_s() <= 0
        state.cool_down(self._level, self._cooling_down_until)

    def _is_below(self) -> bool:
        return self._after_bytes < self._stop_below

    def _left_s(self) -> float:
        return self._bucket.available_s(self._clock())


class _StepRun:
    """One step of one pass, slice by slice. An exception of the step is logged and counted, not raised.

    Args:
        state: the step, its breaker and its counters.
        level: how short memory is.
        bucket: limits the time, and is charged for it.
        clock: monotonic seconds.
    """

    __slots__ = ("_bucket", "_clock", "_duration_s", "_freed_bytes", "_slices", "_slices_run", "_state")

    def __init__(self, state: _StepState, level: Level, bucket: TokenBucket, clock: Callable[[], float]) -> None:
        self._state = state
        self._bucket = bucket
        self._clock = clock
        self._slices_run = 0
        self._freed_bytes = 0
        self._duration_s = 0.0
        self._slices = self._slices_of(state.step, level)

    def run_slice(self) -> bool:
        """Run one slice; return whether there was one to run."""
        began = self._clock()
        freed_bytes = self._next()
        took_s = self._clock() - began

        # Finding that there is nothing to do takes time as well.
        self._duration_s += took_s
        self._bucket.spend(took_s)
        if freed_bytes is None:
            self._state.add_slice(0, took_s, is_first=False)
            return False
        self._state.add_slice(freed_bytes, took_s, is_first=not self._slices_run)
        self._freed_bytes += freed_bytes
        self._slices_run += 1
        return True

    def close(self) -> None:
        """End the run, in the middle of the step or after its last slice."""
        try:
            self._slices.close()
        except Exception:
            self._state.record_failure()

    def result(self) -> StepResult | None:
        """Return what the step did; None if it had nothing to do."""
        if not self._slices_run:
            return None
        return StepResult(str(self._state.step.name), self._freed_bytes, self._duration_s)

    def _next(self) -> int | None:
        try:
            return checked_bytes(next(self._slices))
        except StopIteration:
            if self._slices_run:
                self._state.record_success()
        except Exception:
            self._slices_run += 1
            self._state.record_failure()
        return None

    def _slices_of(self, step: Step, level: Level) -> Generator[int, None, None]:
        if isinstance(step, SlicedStep):
            yield from step.slices(level, self._left_s)
            return

        deadline = self._clock() + self._left_s()
        freed_bytes = step(level, deadline)
        if self._clock() > deadline + _LATE_S:
            self._state.add_overrun()
        yield freed_bytes

    def _left_s(self) -> float:
        return self._bucket.available_s(self._clock())


def _parse_share(share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigError("share", share, "a share of wall time above 0 and up to 1, such as 0.05")
    return float(share)


def _checked_step(step: object) -> Step:
    is_step = callable(step) and isinstance(getattr(step, "name", None), str)
    if not is_step or not isinstance(getattr(step, "min_level", None), Level):
        accepted = "callables (level, deadline) -> freed bytes, each with a name and a min_level"
        raise ConfigError("steps", step, accepted)
    return cast("Step", step)
