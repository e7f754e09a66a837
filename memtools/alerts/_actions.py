"""Actions of rules, run in a thread of their own."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from memtools._safe_calls import AbandonableCall, CircuitBreaker, RateLimitedLogger
from memtools._threads import OwnThread
from memtools.alerts._incidents import RunAction, exit_bytes
from memtools.alerts._protocol import Deadline
from memtools.alerts._rules import AlertRule
from memtools.cleanup import Reclaimer, default_steps
from memtools.errors import ConfigError
from memtools.readings import effective_limit, resident_bytes

# Any: the result is ignored, unless it can be awaited.
CleanUpFunction: TypeAlias = Callable[[AlertRule], Any]

MAX_QUEUED_ACTIONS: Final = 100  # as many as messages for a channel, by default
_MAX_CANCEL_S: Final = 2.0  # how long a coroutine that was cancelled may take to end
_JOIN_S: Final = 1.0  # for the thread to end after the deadline of the end


@runtime_checkable
class Cleanup(Protocol):
    """An object of the program that gives memory back when asked; `clean_up` may be a coroutine function."""

    def clean_up(self) -> Any:  # Any: as above
        """Give memory back now."""
        ...


@runtime_checkable
class MonitorLike(Protocol):
    """A `MemoryMonitor`, as far as alerts use it."""

    def check(self) -> Any:  # Any: as above
        """Read memory now, and act by the thresholds of the monitor."""
        ...


def parse_cleanup(value: object) -> CleanUpFunction:
    """Return the function that `immediate_cleanup` calls with its rule.

    Raises:
        ConfigError: for anything but a monitor, a reclaimer, a `Cleanup` or a callable.
    """
    if value is None:
        return _via_reclaimer(Reclaimer(default_steps(), read=resident_bytes))
    if isinstance(value, Reclaimer):
        return _via_reclaimer(value)
    if isinstance(value, Cleanup):
        clean_up = value.clean_up
        return lambda _: clean_up()
    if isinstance(value, MonitorLike):
        return _via_monitor(value)
    if callable(value):
        return lambda _: value()
    accepted = "a MemoryMonitor, a Reclaimer, an object with a method clean_up, or a callable"
    raise ConfigError("monitor", value, accepted)


def _via_monitor(monitor: MonitorLike) -> CleanUpFunction:
    reclaim = _via_reclaimer(Reclaimer(default_steps(), read=resident_bytes))
    # The monitor acts by its own thresholds, which may be above the rule's.
    return lambda rule: reclaim(rule) if rule.is_thresholded else monitor.check()


def _via_reclaimer(reclaimer: Reclaimer) -> CleanUpFunction:
    return lambda rule: reclaimer.reclaim(rule.level, _target_bytes(rule))


def _target_bytes(rule: AlertRule) -> int:
    # Without a threshold of its own: 0, which is never reached, hence all steps of the level.
    limit_bytes = effective_limit().value_bytes
    entry_bytes = rule.entry_bytes(limit_bytes)
    return 0 if entry_bytes is None else exit_bytes(entry_bytes, limit_bytes)


class Actions:
    """The thread that runs actions, started when the first one is due or by `start`.

    An action that takes too long is abandoned with its thread, and another thread goes on with the rest. Its rule is
    not run again until the action has ended, so there is at most one such thread for each rule. A rule whose action
    fails several times in a row is not run any more.

    Args:
        clean_up: what `immediate_cleanup` calls.
        loop: where coroutines run; None for a loop of their own.
        timeout_s: how long an action may take.
        problems: where failures are logged.

    Threads: `submit` and `check_overdue` are called by one thread at a time each.
    """

    def __init__(
        self,
        clean_up: CleanUpFunction,
        loop: asyncio.AbstractEventLoop | None,
        *,
        timeout_s: float,
        problems: RateLimitedLogger,
    ) -> None:
        self._clean_up = clean_up
        self._loop = loop
        self._timeout_s = timeout_s
        self._problems = problems
        self._queue: SimpleQueue[RunAction | None] = SimpleQueue()
        self._worker: _WorkerThread | None = None
        self._abandoned: set[AlertRule] = set()  # those whose action was abandoned and has not ended
        self._breakers: dict[AlertRule, CircuitBreaker] = defaultdict(
            lambda: CircuitBreaker(retry_after_s=float("inf"))
        )
        self._ended = False
        self.run = self.failed = self.skipped = 0

    @property
    def is_alive(self) -> bool:
        """Whether a thread runs that will go on to the next action."""
        return self._worker is not None and self._worker.thread.is_alive()

    def submit(self, action: RunAction) -> None:
        """Have an action run soon; never waits."""
        if not self._may_run(action.rule) or self._queue.qsize() >= MAX_QUEUED_ACTIONS:
            self.skipped += 1
            return
        self._queue.put(action)
        self.start()

    def start(self) -> None:
        """Start a thread unless one is free; where none can be started, the next action tries again."""
        worker = self._worker
        if self._ended or (self.is_alive and worker is not None and not worker.is_abandoned):
            return
        fresh = _WorkerThread(self._work)
        self._worker = fresh  # before it starts: the thread checks whether it is the current one
        try:
            fresh.thread.start()
        except (RuntimeError, MemoryError):
            self._worker = worker
            self._problems.warning("thread", "No thread can be started for the actions of alerts: they wait")

    def check_overdue(self) -> None:
        """Abandon an action that takes too long, and have another thread go on with the rest."""
        worker = self._worker
        if worker is not None and time.monotonic() > worker.overdue_at(self._timeout_s):
            self._abandon(worker)
        if not self._queue.empty():
            self.start()

    def overdue_at(self) -> float:
        """Return when to call `check_overdue` next; infinite when no action runs."""
        worker = self._worker
        if worker is None or worker.is_abandoned or (worker.rule is None and self._queue.empty()):
            return float("inf")
        # One that is queued and has not begun is checked in time if this is asked again when it may be late.
        return min(worker.overdue_at(self._timeout_s), time.monotonic() + self._timeout_s)

    def request_stop(self) -> None:
        """Have the thread end once what is queued has run."""
        self._queue.put(None)

    def end(self, deadline: Deadline) -> None:
        """Wait for the thread, at most until the deadline; what has not run by then is skipped."""
        worker = self._worker
        if worker is None:
            return
        if worker.thread is not threading.current_thread() and worker.thread.is_alive():
            worker.thread.join(deadline.left_s)
        self._ended = True
        if worker.thread.is_alive():
            if worker.future is not None:
                worker.future.cancel()
                worker.thread.join(min(self._timeout_s, _JOIN_S))
            rule = worker.rule
            if worker.thread.is_alive() and rule is not None:
                text = "Alerts stopped while action %s was running; its thread was abandoned"
                self._problems.warning("end", text, rule.action_name)

    def _work(self, worker: "_WorkerThread") -> None:
        while self._worker is worker and not self._ended:
            action = self._queue.get()
            if action is None:
                if self._worker is not worker:
                    self._queue.put(None)  # it was meant for the thread that replaces this one
                return
            if self._may_run(action.rule):
                self._run(action, worker)
            else:
                self.skipped += 1

    def _run(self, action: RunAction, worker: "_WorkerThread") -> None:
        rule = action.rule
        call = AbandonableCall(
            partial(self._call, action, worker),
            name=worker.thread.name,
            on_late_end=partial(self._on_late_end, rule, worker),
        )
        worker.begin(rule, call)
        call.run()
        worker.idle()
        if worker.has_ended_late:  # it has been counted as failed
            return
        error, call.error = call.error, None
        if error is not None:
            self._record_failure(rule, f"failed ({type(error).__name__})", error)
        else:
            self.run += 1
            self._breakers[rule].record_success()

    def _abandon(self, worker: "_WorkerThread") -> None:
        rule = worker.rule
        if rule is None or worker.is_abandoned:
            return
        self._abandoned.add(rule)  # before the call is abandoned: its late end removes the rule
        if worker.call is None or not worker.call.abandon():
            self._abandoned.discard(rule)
            return
        worker.is_abandoned = True
        self._record_failure(rule, f"has not ended after {self._timeout_s:g} s and was abandoned", None)

    def _on_late_end(self, rule: AlertRule, worker: "_WorkerThread") -> None:
        worker.has_ended_late = True
        self._abandoned.discard(rule)

    def _may_run(self, rule: AlertRule) -> bool:
        return rule not in self._abandoned and not self._breakers[rule].is_open(time.monotonic())

    def _call(self, action: RunAction, worker: "_WorkerThread") -> None:
        function = action.rule.action
        result: Any = function(action.alert) if callable(function) else self._clean_up(action.rule)
        if isinstance(result, Awaitable):
            self._wait_for(cast("Awaitable[object]", result), worker)

    def _wait_for(self, awaitable: Awaitable[object], worker: "_WorkerThread") -> None:
        bounded = _bounded(awaitable, self._timeout_s)
        if self._loop is None:
            asyncio.run(bounded)
            return
        if not self._loop.is_running():
            bounded.close()
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise RuntimeError("the event loop in which alerts were started has ended")
        worker.future = asyncio.run_coroutine_threadsafe(bounded, self._loop)
        try:
            # The loop may be blocked, or end, before it comes to cancel what takes too long.
            worker.future.result(self._timeout_s + min(self._timeout_s, 1.0))
        finally:
            worker.future.cancel()
            worker.future = None

    def _record_failure(self, rule: AlertRule, text: str, error: BaseException | None) -> None:
        self.failed += 1
        breaker = self._breakers[rule]
        breaker.record_failure(time.monotonic())
        if breaker.is_open(time.monotonic()):
            message = "The action %s of alerts %s, %d times in a row: it is not run any more"
            failures = breaker.failures_in_a_row
            self._problems.warning(f"breaker {id(rule)}", message, rule.action_name, text, failures, error=error)
        else:
            message = "The action %s of alerts %s; the service goes on"
            self._problems.warning(f"action {id(rule)}", message, rule.action_name, text, error=error)


class _WorkerThread:
    """A daemon thread that runs actions, and the one that it runs now."""

    def __init__(self, work: Callable[["_WorkerThread"], object]) -> None:
        self.thread = OwnThread(target=work, args=(self,), name="memtools-alerts-actions", daemon=True)
        self.rule: AlertRule | None = None
        self.call: AbandonableCall[None] | None = None
        self.future: Any = None  # Any: of whatever the action returned
        self.is_abandoned = self.has_ended_late = False
        self._since = 0.0

    def begin(self, rule: AlertRule, call: AbandonableCall[None]) -> None:
        self.is_abandoned = self.has_ended_late = False
        self._since, self.call, self.rule = time.monotonic(), call, rule

    def idle(self) -> None:
        self.rule = self.call = None

    def overdue_at(self, timeout_s: float) -> float:
        # A coroutine is cancelled at its timeout: it is given a moment to end.
        return float("inf") if self.rule is None else self._since + timeout_s + min(timeout_s, _MAX_CANCEL_S)


async def _bounded(awaitable: Awaitable[object], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        await awaitable
