"""The engine of a monitor: what is done at each level, and in which order."""

import gc
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools._text import printable
from memtools._threads import OwnThread, call_in_own_thread
from memtools.analysis import Forecast
from memtools.cleanup import Reclaimer, ReclaimResult
from memtools.cleanup._registry import recyclables
from memtools.events import (
    CleanupEnded,
    LevelChanged,
    MemorySampled,
    PressureSignal,
    ReclaimIneffective,
    emit,
    has_listeners,
)
from memtools.monitor._admission import AdmissionQueue, MinimumFlow
from memtools.monitor._callbacks import Callback, CallbackRunner, Callbacks, Trigger
from memtools.monitor._exhaustion import Health, ProcessEnd, assess_health
from memtools.monitor._forecast import Trend
from memtools.monitor._levels import LevelBounds, Thresholds
from memtools.monitor._loops import AsyncioLoop, PressureWatch, ThreadLoop, open_watch
from memtools.monitor._report import format_report, notable_owners, recommendations
from memtools.monitor._sampler import MemorySource, Sample, Sampler
from memtools.monitor._statistics import GcPauseMeter, MonitorStatistics, OperationCounters
from memtools.readings import Level, Reading
from memtools.readings._resident import split_resident_if_known
from memtools.timelines import Timeline
from memtools.timelines._recording import allocated_blocks, describe_event
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.black_box import BlackBox

REPEAT_LOG_S: Final = 300.0
PRESSURE_GC_INTERVAL_S: Final = 15.0  # between minor collections that answer signals of pressure
_RETRY_THREAD_S: Final = 30.0  # after the system gave none
_RETRY_TICK_S: Final = 1.0  # after a tick that failed
_LOOK_S: Final = 1.0  # between two looks at the mailbox of the black box
_LATE_S: Final = 1.0  # a look samples where the sampling loop is later
_WARN_LATE_S: Final = 10.0
_LOGGED_OWNERS: Final = 3
_LEAST_CHANGE: Final = 0.01  # of the limit, for adapted thresholds
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


@record
class WriteLastWords:
    """An action: write into the black box what a reader wants to know of a process that is killed soon.

    Attributes:
        box: the file.
        reading: memory in use, and the limit.
        level: how short memory is.
        owners: the largest owners, as (name, bytes).
    """

    box: "BlackBox"
    reading: Reading
    level: Level
    owners: tuple[tuple[str, int], ...]

    def write(self) -> None:
        """Do it, which takes a third of a second for each million of objects."""
        self.box.write_last_words(self.reading, self.level, owners=self.owners)


Action: TypeAlias = RunCallbacks | Reclaim | WriteLastWords
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
        timeline: gets the changes of level and the reclaim passes.
        name: the monitor's name, for the log.
    """

    def __init__(
        self,
        sampler: Sampler,
        used: Callable[[], int],
        clock: Callable[[], float],
        *,
        cleanup_interval_s: float,
        timeline: Timeline,
        name: str,
    ) -> None:
        self.timeline = timeline
        self._sampler = sampler
        self._used = used
        self._clock = clock
        self._cleanup_interval_s = cleanup_interval_s
        self.name = name
        self.black_box: BlackBox | None = None
        self._pending_changes: deque[Sample] = deque(maxlen=64)
        self._acting = threading.Lock()  # never waited for
        self._next_minor_gc_at = clock() + cleanup_interval_s if cleanup_interval_s else inf
        self._next_pressure_gc_at = -inf
        self._log_again_at = -inf
        self._ineffective_reported = False
        self._exhausted_reported = False
        self._unhelped_since: float | None = None  # since then no sample was below the exit of CRITICAL
        self._warnings = RateLimitedLogger(_log, interval_s=REPEAT_LOG_S, clock=clock)
        self.cleanups = self.minor_collections = self.freed_bytes = self.ineffective = self.pressure_signals = 0
        self.cleanup_s = 0.0

    def observe(self, sample: Sample) -> bool:
        """Take a sample into account; return whether there is something to do."""
        if sample.before != sample.after:
            self._pending_changes.append(sample)
        if sample.after is not Level.CRITICAL or not sample.is_short or sample.is_blind:
            self._unhelped_since = None  # what is not known is no reason to end a process
        elif self._unhelped_since is None:
            self._unhelped_since = sample.reading.at
        if sample.is_blind:
            message = "%s: free= decides, but the headroom is not known; the level stays %s until it is (in use: %s)"
            self._warnings.warning("blind", message, self.name, sample.after.name, sample.reading)
        if self.black_box is not None:
            self.black_box.observe(sample.reading, sample.after)
        if has_listeners():
            emit(MemorySampled(sample.reading, sample.after, self.name, sample.headroom))
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

    def unhelped_s(self) -> float:
        """Return for how long memory has been critical in spite of clean-up, in seconds; 0.0 where it is not."""
        since = self._unhelped_since
        return 0.0 if since is None else max(0.0, self._clock() - since)

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
        """Forget actions that were running: in a forked child no thread ends them, and the parent reports its own."""
        self._acting = threading.Lock()
        self._pending_changes.clear()
        self._unhelped_since = None

    def _on_level_change(self, sample: Sample) -> Actions:
        largest, growing = notable_owners(_LOGGED_OWNERS) if sample.after > sample.before else ((), ())
        free_bytes = None if sample.headroom is None else sample.entry_free_bytes
        change = LevelChanged(
            sample.before,
            sample.after,
            sample.reading,
            sample.threshold_bytes,
            self.name,
            sample.headroom,
            free_bytes,
            self._sampler.growth.bytes_per_s(sample.reading.used_bytes, sample.reading.at),
            largest,
            growing,
        )
        self._log_again_at = self._clock() + REPEAT_LOG_S
        if sample.after < sample.before:
            self._ineffective_reported = self._exhausted_reported = False
        _log_change(change)
        if self.black_box is not None and sample.after > sample.before:
            yield WriteLastWords(self.black_box, sample.reading, sample.after, largest)
        self.timeline.mark(*(describe_event(change) or ("alarm", "")))
        emit(change)
        yield RunCallbacks(_TRIGGERS[sample.after], change)

    def _reclaim(self, sample: Sample) -> Actions:
        self._repeat_warning(sample)
        result = yield Reclaim(sample.after, sample.exit_bytes)
        if result is None:
            return

        self._count_pass(result)
        if result.is_effective:
            self._unhelped_since = None
        if not result.exhausted:
            return
        again = self._sampler.sample(wait=True)
        if again is not None and self.observe(again) and again.is_short:
            yield from self._on_exhausted(again)

    def _count_pass(self, result: ReclaimResult) -> None:
        self.cleanups += 1
        self.cleanup_s += result.duration_s
        self.freed_bytes += max(0, result.before_bytes - result.after_bytes)

        self.timeline.mark("cleanup", f"{format_size(result.before_bytes - result.after_bytes)} given back")

    def _on_exhausted(self, sample: Sample) -> Actions:
        is_first_exhausted = sample.after is Level.CRITICAL and not self._exhausted_reported
        if self._ineffective_reported and not is_first_exhausted:
            return  # an overload may last, and reading all accounts takes a tenth of a second where there are thousands
        used = sample.reading.used_bytes
        free_bytes = None if sample.headroom is None else sample.exit_free_bytes
        largest, _ = notable_owners(_LOGGED_OWNERS)
        event = ReclaimIneffective(
            sample.after, used, sample.exit_bytes, largest, self.name, sample.headroom, free_bytes
        )
        if not self._ineffective_reported:
            self._ineffective_reported = True
            self.ineffective += 1
        # At CRITICAL once more: an alert that was opened at WARNING has to escalate.
        _log_ineffective(event)
        emit(event)
        if is_first_exhausted:
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
        if sample.headroom is None:
            figure, end = str(sample.reading), f"use stays below {format_size(sample.exit_bytes)}"
        else:
            figure = f"{sample.headroom}, in use {sample.reading}"
            end = f"more than {format_size(sample.exit_free_bytes)} stay free"
        _log.warning("%s: memory is still %s: %s; the level falls when %s", self.name, sample.after.name, figure, end)


def _log_change(change: LevelChanged) -> None:
    severity = {Level.NORMAL: logging.INFO, Level.WARNING: logging.WARNING, Level.CRITICAL: logging.ERROR}
    message = "%s: memory is %s, it was %s: %s"
    if change.headroom is None or change.free_bytes is None:
        figure = f"{change.reading}, threshold {format_size(change.threshold_bytes)}"
    else:
        # The figure that crossed comes first: use may be far below a limit that other processes fill.
        figure = f"{change.headroom}, threshold {format_size(change.free_bytes)} free; in use {change.reading}"
    _log.log(severity[change.after], message, change.monitor, change.after.name, change.before.name, figure)


def _log_ineffective(event: ReclaimIneffective) -> None:
    owners = ", ".join(f"{owner} {format_size(size)}" for owner, size in event.largest) or "unknown"
    figure = f"{format_size(event.used_bytes)} still in use (target {format_size(event.target_bytes)})"
    if event.headroom is not None and event.free_bytes is not None:
        figure = f"{event.headroom} (target {format_size(event.free_bytes)}), {format_size(event.used_bytes)} in use"
    message = "%s: all clean-up steps ran, %s; largest owners: %s; see monitor.report()"
    _log.error(message, event.monitor, figure, owners)


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
                if isinstance(action, WriteLastWords):
                    _write_last_words(action, in_thread=in_thread)
                    continue
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
                if isinstance(action, WriteLastWords):
                    await _write_last_words_async(action)
                    continue
                if isinstance(action, Reclaim):
                    result = await self._reclaim_async(action)
                    continue
                for callback, arguments in self._callbacks_for(action):
                    await self._runner.run_async(callback, arguments)
        finally:
            actions.close()

    def _callbacks_for(self, action: RunCallbacks) -> Iterator[tuple[Callback, tuple[object, ...]]]:
        arguments = () if action.event is None else (action.event,)
        if action.trigger == "recycle":
            self._callbacks.add_recyclables(recyclables())
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


# Last words come before all else, since a kill may be near, but not at the cost of the program's own thread or loop.


def _write_last_words(action: WriteLastWords, *, in_thread: bool) -> None:
    if in_thread:  # that of the sampling loop
        action.write()
        return
    with suppress(RuntimeError):  # no thread can be started; readings and owners are in the file all the same
        OwnThread(target=action.write, name="memtools-last-words", daemon=True).start()


async def _write_last_words_async(action: WriteLastWords) -> None:
    with suppress(RuntimeError):  # the same
        await call_in_own_thread(action.write, name="memtools-last-words")


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
        exhausted_after_s: float,
        min_flow: float,
        pressure: bool,
        trend: Trend,
        on_resume: Callable[[], object],
    ) -> None:
        self.name = name
        self.source = source
        self.sampler = sampler
        self.callbacks = Callbacks(source.clock)
        self.runner = CallbackRunner(callback_timeout_s, source.clock)
        self.operations = OperationCounters(sample_every, self.sample_operation)
        self.flow = MinimumFlow(min_flow, source.clock)
        self._request_flow = MinimumFlow(min_flow, source.clock)  # of its own: a request may ask for admissions
        self.admissions = AdmissionQueue(
            self._use_for_admission, source.clock, lambda: self.flow.try_take(sampler.level_since)
        )
        self.end: ProcessEnd | None = None
        self._exhausted_after_s = exhausted_after_s
        self.timeline, self.forecast, self._is_adaptive = trend.timeline, trend.forecast, trend.is_adaptive
        self._wall_offset_s = time.time() - source.clock()
        self._recording = threading.Lock()  # never waited for
        self._applied: tuple[int, int] | None = None
        self.gc_pauses = GcPauseMeter(on_full=lambda: self.timeline.mark("collection", "full collection"))
        self.loop: ThreadLoop | AsyncioLoop | None = None
        self.wants_thread = False
        self.started_in = 0  # the process whose program started it, by its number
        self._policy = ReclaimPolicy(
            sampler,
            source.used,
            source.clock,
            cleanup_interval_s=cleanup_interval_s,
            timeline=trend.timeline,
            name=name,
        )
        self._executor = _Executor(reclaimer, self.callbacks, self.runner)
        self._warnings = RateLimitedLogger(_log, interval_s=REPEAT_LOG_S, clock=source.clock)
        self._pressure = pressure
        self._on_resume = on_resume
        self._next_thread_try_at = -inf
        self._starting = threading.Lock()  # never waited for
        self._pid = os.getpid()
        self._is_unattended = False  # since a fork: nothing samples yet
        self._is_orphaned = False  # since a fork: its loop is the parent's, so nothing samples by itself

    @property
    def black_box(self) -> "BlackBox | None":
        """The file that is written for after a kill; None for none."""
        return self._policy.black_box

    @black_box.setter
    def black_box(self, box: "BlackBox | None") -> None:
        self._policy.black_box = box

    def open_black_box(self) -> None:
        """Make the file, if one is wanted; where that fails it is logged, and the program goes on without."""
        if self.black_box is None:
            return
        try:
            self.black_box.open()
            self.look()  # so that the file tells that it is looked at
        except Exception as error:  # the program works without
            self._warnings.warning("black box", "%s: there is no black box: %s", self.name, error)

    def rename(self, name: str) -> None:
        """Change what it is called in logs, events and statistics."""
        self.name = self._policy.name = name

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
            if os.getpid() != self._pid or self._is_unattended:
                self._resume()
            if self.sampler.is_sample_due():
                self._sample_and_act()
        except Exception as error:
            self._log_fault(error)

    def check(self) -> Reading:
        """Sample, act, and return what was read."""
        self.attend()
        self._start_wanted_thread()
        sample = self.sampler.sample(wait=True, with_headroom=True)
        if sample is None:  # called in the middle of a sample, by a finaliser or a signal handler
            return Reading(self.source.used(), self.sampler.limit.value_bytes, self.source.clock())
        self._policy.observe(sample)
        self._record(sample.reading)
        self._executor.run(self._policy.actions(sample))
        return sample.reading

    def try_admit(self) -> bool:
        """Return whether work that cannot wait may begin."""
        self.attend()
        if self.admissions.is_closed:
            return False
        return self.sampler.level < Level.CRITICAL or self._request_flow.try_take(self.sampler.level_since)

    def health(self) -> Health:
        """Return the health by the last sample; only the first look in a forked child samples."""
        if os.getpid() != self._pid or self._is_unattended:
            self._resume()
        return assess_health(
            self.sampler,
            self.source.clock(),
            name=self.name,
            is_running=self.mode != "none",
            is_ending=self.end is not None and self.end.has_begun,
            exhausted_s=self._policy.unhelped_s(),
            bound_s=self._exhausted_after_s,
            forecast=self._forecast_now(),
        )

    def report(self) -> str:
        """Return the report, by a reading taken now; where that is refused, by the last one."""
        self._sample_for_a_look()
        statistics = self.statistics()
        lines = (*self._trend_lines(statistics), *self._black_box_lines())
        return format_report(statistics, recommendations(statistics), split_resident_if_known(), lines)

    def _trend_lines(self, seen: MonitorStatistics) -> tuple[str, ...]:
        if self.forecast is None:
            return ()
        limit = None if seen.limit is None else seen.limit.value_bytes
        rising, found = self.forecast.rising, self.forecast.forecast()
        lines = [] if rising is None or found is None else [f"{found}: {rising.reason}"]
        lines += [printable(owner.text, 300) for owner in self.forecast.owners()]
        suggested = self.forecast.suggestion(limit, seen.warning_bytes)
        if suggested is not None:
            sizes = f"warning={format_size(suggested.warning_bytes)}, critical={format_size(suggested.critical_bytes)}"
            lines.append(f"suggested: {sizes}: {suggested.reason}")
        return tuple(lines)

    def _black_box_lines(self) -> tuple[str, ...]:
        box = self.black_box
        if box is None or not self.is_started:
            return ()
        if not box.path:
            return (f"black box: there is none, it could not be made in {box.folder}",)
        content = "who holds what" if box.counts_owners else "readings and last words only, without the native ledger"
        return (f"black box: {box.path} ({content})",)

    def _forecast_now(self) -> Forecast | None:
        return None if self.forecast is None else self.forecast.forecast()

    def log_thresholds(self) -> None:
        """Log thresholds that cannot have been meant: below what is in use at the start, or above the limit."""
        try:
            used, limit = self.source.used(), self.sampler.limit.value_bytes
        except OSError:
            return
        for level in (Level.WARNING, Level.CRITICAL):
            entry = _entry(self.sampler.bounds, level)
            if entry is None:
                continue
            word, size = level.name.lower(), format_size(entry)
            if entry <= used:
                message = "%s: %s=%s is below the %s in use at the start: memory counts as short from now on"
                _log.warning(message, self.name, word, size, format_size(used))
            elif limit is not None and entry > limit:
                message = (
                    "%s: %s=%s is above the limit of %s, so it is never reached; a share such as '90%%' follows it"
                )
                _log.warning(message, self.name, word, size, format_size(limit))

    def attend(self) -> None:
        """Notice a fork, before the program is told anything or the monitor does anything.

        The level, the statistics and the admissions of a child would else be those of the moment of the fork, for as
        long as nothing samples. The first look starts the thread again and samples at once; what that means for
        callbacks and clean-up is left to the thread. Where the loop is the parent's, each look samples that is due; and
        so it does where the sampling loop is late, since a clean-up step of the program hangs in it, say.
        """
        if os.getpid() != self._pid or self._is_unattended:
            self._resume()
        elif (self.loop is not None or self.wants_thread or self._is_orphaned) and self._is_late():
            self._sample_for_a_look()

    def detect_fork(self) -> None:
        """Notice a fork by C code (uWSGI, mod_wsgi), which runs no handler of Python's."""
        if os.getpid() != self._pid:
            self.after_fork()

    def _is_late(self) -> bool:
        late_s = self.source.clock() - self.sampler.due_at
        if late_s > _WARN_LATE_S and not self._is_orphaned:
            message = "%s: the sampling loop is %.0f s late; does a clean-up step hang, or the event loop?"
            self._warnings.warning("late", message, self.name, late_s)
        return late_s > (0.0 if self._is_orphaned else _LATE_S)

    def tick(self) -> float:
        """Sample and act in the thread of the sampling loop; return the seconds until the next tick."""
        try:
            self._executor.run(self._policy.actions(self._sample_on_tick()), in_thread=True)
            self._end_if_exhausted()
        except Exception as error:
            self._log_fault(error)
            return _RETRY_TICK_S
        return self._seconds_to_next_tick()

    async def tick_async(self) -> float:
        """Sample and act on the running loop; return the seconds until the next tick."""
        try:
            await self._executor.run_async(self._policy.actions(self._sample_on_tick()))
            self._end_if_exhausted()
        except Exception as error:
            self._log_fault(error)
            return _RETRY_TICK_S
        return self._seconds_to_next_tick()

    def look(self) -> float:
        """Look whether another process has a question; return the seconds to the next look, infinite without a box."""
        if self.black_box is None:
            return inf
        self.black_box.look_for_question(report=self.report, interval_s=_LOOK_S)
        return _LOOK_S

    def on_pressure(self, source: str) -> None:
        """Take a signal of pressure into account; the sampling loop ticks next."""
        self._policy.observe_pressure(source)

    def start_thread(self) -> None:
        """Start the sampling loop in a thread; where none can be started, operations go on sampling and retry it."""
        self.wants_thread = True
        self.started_in = os.getpid()
        self._is_orphaned = False
        self.sampler.expect_sample()
        self._next_thread_try_at = -inf
        self._start_wanted_thread()

    def start_task(self) -> None:
        """Start the sampling loop in a task of the running event loop."""
        self.sampler.expect_sample()
        thread = self.loop  # of a child whose parent had started a thread
        loop = AsyncioLoop(self.name, self, self.open_watch)
        loop.start()
        self.wants_thread = self._is_orphaned = False
        self.started_in = os.getpid()
        self.loop = loop
        if thread is not None:
            thread.request_stop()

    def stop_thread(self, loop: ThreadLoop) -> None:
        """Stop a sampling loop in a thread, and log it where the thread does not end."""
        if not loop.stop():
            message = "%s: stopped while a clean-up step or callback did not return; its thread was abandoned"
            self._warnings.warning("stop", message, self.name)

    def take_loop(self) -> ThreadLoop | AsyncioLoop | None:
        """Return the sampling loop, which the caller ends; the engine has none from here on."""
        loop, self.loop = self.loop, None
        self.wants_thread = self._is_unattended = self._is_orphaned = False
        if self.black_box is not None:
            self.black_box.close()
        self.gc_pauses.stop()
        if self.forecast is not None and loop is not None:
            self.forecast.save()
        return loop

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
        self._starting = threading.Lock()
        self._recording = threading.Lock()
        self.timeline = self._policy.timeline = Timeline(limit_bytes=self.sampler.limit.value_bytes)
        if self.forecast is not None:
            self.forecast.after_fork(self.timeline)
        self.sampler.after_fork()
        self._policy.after_fork()
        self.operations.after_fork()
        self.admissions.after_fork()
        self.flow.after_fork()
        self._request_flow.after_fork()
        if self.end is not None:
            self.end.after_fork()
        self.callbacks.after_fork()
        self.runner.after_fork()
        self._next_thread_try_at = -inf
        loop, self.loop = self.loop, None
        self._is_orphaned = self._is_orphaned or (loop is not None and not self.wants_thread)
        self._is_unattended = self.wants_thread or self._is_orphaned
        if loop is not None:
            loop.after_fork()

    def statistics(self) -> MonitorStatistics:
        """Return the counts of all parts; each part is copied by itself, so they may be a moment apart."""
        sampler, policy, now = self.sampler, self._policy, self.source.clock()
        found = self._forecast_now()
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
            warning_free_bytes=sampler.bounds.free_bytes(Level.WARNING)[0] or None,
            critical_free_bytes=sampler.bounds.free_bytes(Level.CRITICAL)[0] or None,
            seconds_to_limit=None if found is None else found.seconds_to_limit,
        )

    def _resume(self) -> None:
        self.detect_fork()
        if self._is_unattended:
            self._is_unattended = False
            self._sample_for_a_look(wait=True)  # the thread that it starts may be sampling before it does so itself
            self._on_resume()

    def _sample_for_a_look(self, *, wait: bool = False) -> None:
        try:
            self._start_wanted_thread()
            sample = self.sampler.sample(wait=wait)
            if sample is not None and self.sampler.is_pending:
                self._policy.observe(sample)
                sample = self.sampler.sample(wait=wait)
            if sample is not None and self._policy.observe(sample) and self.loop is not None:
                self.loop.wake()
        except Exception as error:  # the program asked for a level, and not for a reading
            self._log_fault(error)

    def _sample_on_tick(self) -> Sample | None:
        sample = self.sampler.sample(with_headroom=True)
        if sample is not None:
            self._policy.observe(sample)
            self._record(sample.reading)
        return sample

    def _record(self, reading: Reading) -> None:
        """Add a reading to the timeline and the forecast; a failure is logged, and the reclaim goes on."""
        if not self._recording.acquire(blocking=False):
            return  # another thread does, or the code that a finaliser has interrupted
        try:
            self.timeline.add(
                reading.used_bytes,
                blocks=allocated_blocks(),
                at_s=reading.at + self._wall_offset_s,
                limit_bytes=reading.limit_bytes,
            )
            event = None if self.forecast is None else self.forecast.observe(reading, self.name)
            if event is not None:
                self.timeline.mark("forecast", str(event), at_s=reading.at + self._wall_offset_s)
                _log.log(
                    logging.INFO if event.is_over else logging.WARNING, "%s: %s (%s)", self.name, event, event.reason
                )
                emit(event)
            if self._is_adaptive:
                self._adapt(reading.limit_bytes)
        except Exception as error:
            self._log_fault(error)
        finally:
            with suppress(RuntimeError):  # a new lock, if this process was forked in the middle
                self._recording.release()

    def _adapt(self, limit_bytes: int | None) -> None:
        suggested = None if self.forecast is None else self.forecast.suggestion(limit_bytes, None)
        if suggested is None or limit_bytes is None:
            return
        thresholds = suggested.warning_bytes, suggested.critical_bytes
        applied = self._applied
        if (
            applied is not None
            and max(abs(new - old) for new, old in zip(thresholds, applied, strict=True)) < _LEAST_CHANGE * limit_bytes
        ):
            return
        self._applied = thresholds
        self.sampler.change_thresholds(Thresholds(*thresholds, None, lambda: limit_bytes))
        sizes = ", critical=".join(map(format_size, thresholds))
        _log.info("%s: thresholds adapted: warning=%s (%s)", self.name, sizes, suggested.reason)

    def _end_if_exhausted(self) -> None:
        # Only the sampling loop does it: an operation or a look is in the middle of the work of the program.
        if self.end is not None and self._policy.unhelped_s() >= self._exhausted_after_s:
            self.end.begin(self.name, self.health().reason)

    def _sample_and_act(self) -> None:
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
        starting = self._starting
        if not self.wants_thread or not starting.acquire(blocking=False):
            return
        try:
            now = self.source.clock()
            if (self.loop is not None and self.loop.is_alive) or now < self._next_thread_try_at:
                return
            self._next_thread_try_at = now + _RETRY_THREAD_S
            loop = ThreadLoop(self.name, self, self.open_watch)
            self.loop = loop
            is_running = loop.start()
            if not is_running:
                self.loop = None
        finally:
            starting.release()
        if not is_running:
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
