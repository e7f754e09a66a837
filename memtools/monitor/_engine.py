"""The engine of a monitor: what is done at each level, and in which order."""

import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from math import inf
from typing import Final, TypeAlias

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools.cleanup import Reclaimer, ReclaimResult
from memtools.events import (
    CleanupEnded,
    LevelChanged,
    MemorySampled,
    PressureSignal,
    ReclaimIneffective,
    emit,
    has_listeners,
)
from memtools.monitor._admission import AdmissionQueue
from memtools.monitor._callbacks import Callback, CallbackRunner, Callbacks, Trigger
from memtools.monitor._levels import LevelBounds
from memtools.monitor._loops import AsyncioLoop, PressureWatch, ThreadLoop, open_watch
from memtools.monitor._report import largest_owners
from memtools.monitor._sampler import MemorySource, Sample, Sampler
from memtools.monitor._statistics import GcPauseMeter, MonitorStatistics, OperationCounters
from memtools.readings import Level, Reading
from memtools.units import format_size

REPEAT_LOG_S: Final = 300.0
PRESSURE_GC_INTERVAL_S: Final = 15.0  # between minor collections that answer signals of pressure
_RETRY_THREAD_S: Final = 30.0  # after the system gave none
_RETRY_TICK_S: Final = 1.0  # after a tick that failed
_LOGGED_OWNERS: Final = 3
_TRIGGERS: Final[dict[Level, Trigger]] = {
    Level.NORMAL: "normal",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
}

_log = logging.getLogger("memtools.monitor")


@record
class RunCallbacks:
    """An action: run the callbacks of a trigger.

    Attributes:
        trigger: which.
        event: the record that they take; None for `"recycle"`, which takes nothing.
    """

    trigger: Trigger
    event: object


@record
class Reclaim:
    """An action: run a reclaim pass.

    Attributes:
        level: how short memory is.
        stop_below: the use at which to stop, in bytes.
    """

    level: Level
    stop_below: int


Action: TypeAlias = RunCallbacks | Reclaim
Actions: TypeAlias = Generator[Action, ReclaimResult | None, None]


class ReclaimPolicy:
    """Decides what is done about a sample: log, events, callbacks, reclaim passes, minor collections.

    The decision is a generator of actions, so that a thread and an event loop can run the same decision, each in its
    own way.

    Args:
        sampler: samples again after a reclaim pass.
        used: returns the bytes in use.
        clock: monotonic seconds.
        cleanup_interval_s: seconds between minor collections; 0 for none.
        name: the monitor's name, for the log.
    """

    def __init__(
        self,
        sampler: Sampler,
        used: Callable[[], int],
        clock: Callable[[], float],
        *,
        cleanup_interval_s: float,
        name: str,
    ) -> None:
        self._sampler = sampler
        self._used = used
        self._clock = clock
        self._cleanup_interval_s = cleanup_interval_s
        self._name = name
        self._pending_changes: deque[Sample] = deque(maxlen=64)
        self._acting = threading.Lock()  # never waited for
        self._next_minor_gc_at = clock() + cleanup_interval_s if cleanup_interval_s else inf
        self._next_pressure_gc_at = -inf
        self._log_again_at = -inf
        self._ineffective_reported = False
        self._exhausted_reported = False
        self.cleanups = self.minor_collections = self.freed_bytes = self.ineffective = self.pressure_signals = 0
        self.cleanup_s = 0.0

    def observe(self, sample: Sample) -> bool:
        """Take a sample into account; return whether there is something to do."""
        if sample.before != sample.after:
            self._pending_changes.append(sample)
        if has_listeners():
            emit(MemorySampled(sample.reading, sample.after))
        return bool(self._pending_changes) or sample.is_short

    def observe_pressure(self, source: str) -> None:
        """Take a signal of pressure into account: the next actions include a minor collection."""
        self.pressure_signals += 1
        emit(PressureSignal(source))
        now = self._clock()
        if now >= self._next_pressure_gc_at:
            self._next_pressure_gc_at = now + PRESSURE_GC_INTERVAL_S
            self._next_minor_gc_at = now

    def seconds_to_minor_gc(self) -> float:
        """Return the seconds until the next minor collection; infinite for none."""
        return self._next_minor_gc_at - self._clock()

    def actions(self, sample: Sample | None) -> Actions:
        """Yield what to do about `sample`, the newest; nothing while other actions are still running."""
        if not self._acting.acquire(blocking=False):
            return
        try:
            while self._pending_changes:
                yield from self._on_level_change(self._pending_changes.popleft())
            if sample is not None and sample.is_short:
                yield from self._reclaim(sample)
            elif self._clock() >= self._next_minor_gc_at:
                self._collect_young()
        finally:
            # It is a new lock, which is free, if this process was forked in the middle.
            with suppress(RuntimeError):
                self._acting.release()

    def after_fork(self) -> None:
        """Forget actions that were running: in a forked child no thread ends them."""
        self._acting = threading.Lock()

    def _on_level_change(self, sample: Sample) -> Actions:
        change = LevelChanged(sample.before, sample.after, sample.reading, sample.threshold_bytes)
        self._log_again_at = self._clock() + REPEAT_LOG_S
        if sample.after < sample.before:
            self._ineffective_reported = self._exhausted_reported = False
        _log_change(self._name, change)
        emit(change)
        yield RunCallbacks(_TRIGGERS[sample.after], change)

    def _reclaim(self, sample: Sample) -> Actions:
        self._repeat_warning(sample)
        result = yield Reclaim(sample.after, sample.exit_bytes)
        if result is None:
            return

        self._count_pass(result)
        if not result.exhausted:
            return
        again = self._sampler.sample(wait=True)
        if again is not None and self.observe(again) and again.is_short:
            yield from self._on_exhausted(again)

    def _count_pass(self, result: ReclaimResult) -> None:
        self.cleanups += 1
        self.cleanup_s += result.duration_s
        self.freed_bytes += max(0, result.before_bytes - result.after_bytes)

    def _on_exhausted(self, sample: Sample) -> Actions:
        used = sample.reading.used_bytes
        event = ReclaimIneffective(sample.after, used, sample.exit_bytes, largest_owners(_LOGGED_OWNERS))
        if not self._ineffective_reported:
            self._ineffective_reported = True
            self.ineffective += 1
            _log_ineffective(self._name, event)
            emit(event)
        if sample.after is Level.CRITICAL and not self._exhausted_reported:
            self._exhausted_reported = True
            yield RunCallbacks("recycle", None)
            yield RunCallbacks("exhausted", event)

    def _collect_young(self) -> None:
        started = self._clock()
        self._next_minor_gc_at = started + self._cleanup_interval_s if self._cleanup_interval_s else inf
        before = self._used_or_zero()
        gc.collect(0)
        self.minor_collections += 1
        duration_s = self._clock() - started
        self.cleanup_s += duration_s
        if has_listeners():
            after = self._used_or_zero()
            steps = (("collect the youngest", max(0, before - after), duration_s),)
            emit(CleanupEnded(self._sampler.level, before, after, steps, duration_s))

    def _used_or_zero(self) -> int:
        try:
            return self._used()
        except OSError:
            return 0

    def _repeat_warning(self, sample: Sample) -> None:
        # Not a rate-limited logger: the interval begins with the change of level, whose message says the same.
        now = self._clock()
        if now < self._log_again_at:
            return
        self._log_again_at = now + REPEAT_LOG_S
        message = "%s: memory is still %s: %s; the level falls when use stays below %s"
        _log.warning(message, self._name, sample.after.name, sample.reading, format_size(sample.exit_bytes))


def _log_change(name: str, change: LevelChanged) -> None:
    severity = {Level.NORMAL: logging.INFO, Level.WARNING: logging.WARNING, Level.CRITICAL: logging.ERROR}
    message = "%s: memory is %s, it was %s: %s, threshold %s"
    threshold = format_size(change.threshold_bytes)
    _log.log(severity[change.after], message, name, change.after.name, change.before.name, change.reading, threshold)


def _log_ineffective(name: str, event: ReclaimIneffective) -> None:
    owners = ", ".join(f"{owner} {format_size(size)}" for owner, size in event.largest) or "unknown"
    _log.error(
        "%s: all clean-up steps ran, %s still in use (target %s); largest owners: %s; see monitor.report()",
        name, format_size(event.used_bytes), format_size(event.target_bytes), owners,
    )  # fmt: skip


class _Executor:
    """Runs actions, in the calling thread or on the running loop; a callback's failure stays in the callback."""

    def __init__(self, reclaimer: Reclaimer, callbacks: Callbacks, runner: CallbackRunner) -> None:
        self._reclaimer = reclaimer
        self._callbacks = callbacks
        self._runner = runner

    def run(self, actions: Actions, *, in_thread: bool = False) -> None:
        """Run them all before returning; callbacks `in_thread` in threads of their own, with a time limit."""
        result: ReclaimResult | None = None
        try:
            while (action := _next(actions, result)) is not None:
                result = None
                if isinstance(action, Reclaim):
                    result = self._reclaim(action)
                    continue
                for callback, arguments in self._callbacks_for(action):
                    self._runner.run(callback, arguments, in_thread=in_thread)
        finally:
            actions.close()

    async def run_async(self, actions: Actions) -> None:
        """Run them all; the loop goes on in between."""
        result: ReclaimResult | None = None
        try:
            while (action := _next(actions, result)) is not None:
                result = None
                if isinstance(action, Reclaim):
                    result = await self._reclaim_async(action)
                    continue
                for callback, arguments in self._callbacks_for(action):
                    await self._runner.run_async(callback, arguments)
        finally:
            actions.close()

    def _callbacks_for(self, action: RunCallbacks) -> Iterator[tuple[Callback, tuple[object, ...]]]:
        arguments = () if action.event is None else (action.event,)
        for callback in self._callbacks.for_trigger(action.trigger):
            if self._callbacks.is_registered(callback):  # an earlier one may have removed it
                yield callback, arguments

    def _reclaim(self, action: Reclaim) -> ReclaimResult | None:
        try:
            return self._reclaimer.reclaim(action.level, action.stop_below)
        except OSError:  # no reading in the middle of the pass; the next tick tries again
            return None

    async def _reclaim_async(self, action: Reclaim) -> ReclaimResult | None:
        try:
            return await self._reclaimer.reclaim_async(action.level, action.stop_below)
        except OSError:
            return None


def _next(actions: Actions, result: ReclaimResult | None) -> Action | None:
    try:
        return actions.send(result)
    except StopIteration:
        return None


class Engine:
    """The parts of one monitor, driven by operations, by the sampling loop and by `check()`.

    `MemoryMonitor` only refers to it: so the monitor's finaliser can stop a sampling loop that is still running.
    """

    def __init__(
        self,
        source: MemorySource,
        sampler: Sampler,
        reclaimer: Reclaimer,
        *,
        name: str,
        sample_every: int,
        cleanup_interval_s: float,
        callback_timeout_s: float,
        pressure: bool,
    ) -> None:
        self.name = name
        self.source = source
        self.sampler = sampler
        self.callbacks = Callbacks(source.clock)
        self.runner = CallbackRunner(callback_timeout_s, source.clock)
        self.operations = OperationCounters(sample_every, self.sample_operation)
        self.admissions = AdmissionQueue(self._use_for_admission, source.clock)
        self.gc_pauses = GcPauseMeter()
        self.loop: ThreadLoop | AsyncioLoop | None = None
        self.wants_thread = False
        self._policy = ReclaimPolicy(
            sampler, source.used, source.clock, cleanup_interval_s=cleanup_interval_s, name=name
        )
        self._executor = _Executor(reclaimer, self.callbacks, self.runner)
        self._warnings = RateLimitedLogger(_log, interval_s=REPEAT_LOG_S, clock=source.clock)
        self._pressure = pressure
        self._next_thread_try_at = -inf
        self._pid = os.getpid()

    @property
    def is_started(self) -> bool:
        """Whether a sampling loop was started and has not ended by itself, as one does whose event loop is gone."""
        return self.wants_thread or (self.loop is not None and self.loop.is_alive)

    @property
    def mode(self) -> str:
        """What runs the sampling loop: `"thread"`, `"task"` or `"none"`."""
        loop = self.loop
        return loop.mode if loop is not None and loop.is_alive else "none"

    def sample_operation(self) -> None:
        """Sample for an operation; a failure in here is logged and does not reach the operation."""
        try:
            if self.sampler.is_sample_due():
                self._sample_and_act()
        except Exception as error:
            self._log_fault(error)

    def check(self) -> Reading:
        """Sample, act, and return what was read."""
        self._detect_fork()
        self._start_wanted_thread()
        sample = self.sampler.sample(wait=True, with_headroom=True)
        if sample is None:  # called in the middle of a sample, by a finaliser or a signal handler
            return Reading(self.source.used(), self.sampler.limit.value_bytes, self.source.clock())
        self._policy.observe(sample)
        self._executor.run(self._policy.actions(sample))
        return sample.reading

    def tick(self) -> float:
        """Sample and act in the thread of the sampling loop; return the seconds until the next tick."""
        try:
            self._executor.run(self._policy.actions(self._sample_on_tick()), in_thread=True)
        except Exception as error:
            self._log_fault(error)
            return _RETRY_TICK_S
        return self._seconds_to_next_tick()

    async def tick_async(self) -> float:
        """Sample and act on the running loop; return the seconds until the next tick."""
        try:
            await self._executor.run_async(self._policy.actions(self._sample_on_tick()))
        except Exception as error:
            self._log_fault(error)
            return _RETRY_TICK_S
        return self._seconds_to_next_tick()

    def on_pressure(self, source: str) -> None:
        """Take a signal of pressure into account; the sampling loop ticks next."""
        self._policy.observe_pressure(source)

    def start_thread(self) -> None:
        """Start the sampling loop in a thread; where none can be started, operations go on sampling and retry it."""
        self.wants_thread = True
        self._next_thread_try_at = -inf
        self._start_wanted_thread()

    def open_watch(self) -> PressureWatch | None:
        """Return an open watch for pressure; None where it is not wanted or there is nothing to watch."""
        if not self._pressure:
            return None
        try:
            return open_watch(self.source.headroom())
        except Exception as error:
            self._log_fault(error)
            return None

    def after_fork(self) -> None:
        """Make what a forked child needs: new locks, and no sampling loop yet."""
        self._pid = os.getpid()
        self.sampler.after_fork()
        self._policy.after_fork()
        self.operations.after_fork()
        self.admissions.after_fork()
        self.callbacks.after_fork()
        loop, self.loop = self.loop, None
        if loop is None:
            return
        loop.after_fork()
        if loop.mode != "thread":
            self.gc_pauses.stop()
        self._next_thread_try_at = -inf

    def statistics(self) -> MonitorStatistics:
        """Return the counts of all parts; each part is copied by itself, so they may be a moment apart."""
        sampler, policy, now = self.sampler, self._policy, self.source.clock()
        operations = self.operations.statistics()
        callbacks = tuple(callback.statistics() for callback in self.callbacks.alive())
        return MonitorStatistics(
            name=self.name,
            level=sampler.level,
            level_since_s=max(0.0, now - sampler.level_since),
            reading=sampler.reading,
            limit=sampler.limit,
            headroom=sampler.headroom,
            warning_bytes=_entry(sampler.bounds, Level.WARNING),
            critical_bytes=_entry(sampler.bounds, Level.CRITICAL),
            mode=self.mode,
            interval_s=sampler.interval_s,
            operations=sum(operation.calls for operation in operations),
            failures=sum(operation.failures for operation in operations),
            samples=sampler.samples,
            failed_samples=sampler.failed,
            level_changes=dict(sampler.entered),
            cleanups=policy.cleanups,
            minor_collections=policy.minor_collections,
            freed_bytes=policy.freed_bytes,
            cleanup_s=policy.cleanup_s,
            ineffective_reclaims=policy.ineffective,
            pressure_signals=policy.pressure_signals,
            callback_failures=sum(callback.failures for callback in callbacks),
            callbacks_broken=sum(callback.is_broken for callback in callbacks),
            admissions=self.admissions.statistics(),
            pauses=self.gc_pauses.statistics(),
            by_operation=operations,
            callbacks=callbacks,
        )

    def _detect_fork(self) -> None:
        # A fork by C code (uWSGI, mod_wsgi) runs no handler of Python's.
        if os.getpid() != self._pid:
            self.after_fork()

    def _sample_on_tick(self) -> Sample | None:
        sample = self.sampler.sample(with_headroom=True)
        if sample is not None:
            self._policy.observe(sample)
        return sample

    def _sample_and_act(self) -> None:
        self._detect_fork()
        self._start_wanted_thread()
        sample = self.sampler.sample()
        if sample is None or not self._policy.observe(sample):
            return
        loop = self.loop
        if loop is not None and loop.is_alive:
            loop.wake()
            return
        self._executor.run(self._policy.actions(sample))

    def _start_wanted_thread(self) -> None:
        if not self.wants_thread or (self.loop is not None and self.loop.is_alive):
            return
        now = self.source.clock()
        if now < self._next_thread_try_at:
            return
        self._next_thread_try_at = now + _RETRY_THREAD_S
        loop = ThreadLoop(self.name, self, self.open_watch)
        self.loop = loop
        if not loop.start():
            self.loop = None
            message = (
                "%s: no thread could be started; memory is sampled on operations only, and a thread is tried again"
            )
            self._warnings.warning("thread", message, self.name)

    def _seconds_to_next_tick(self) -> float:
        return max(min(self.sampler.interval_s, self._policy.seconds_to_minor_gc()), self.sampler.min_interval_s)

    def _use_for_admission(self) -> tuple[int, float] | None:
        try:
            used = self.source.used()
        except OSError:
            return 0, inf  # a reading that the system refuses must not hold up the program's work
        return self.sampler.use_and_highest_threshold(used)

    def _log_fault(self, error: Exception) -> None:
        self._warnings.error("sample", "%s: a sample failed; the next one is taken: %s", self.name, error, error=error)


def _entry(bounds: LevelBounds, level: Level) -> int | None:
    found = bounds.by_level.get(level)
    return None if found is None or found.entry_bytes == inf else int(found.entry_bytes)
