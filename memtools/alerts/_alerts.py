"""Alerts: configuration, start and stop, and the work in one process."""

import asyncio
import atexit
import logging
import os
import random
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from memtools._identity import identity
from memtools._safe_calls import AbandonableCall, RateLimitedLogger
from memtools.alerts._actions import Actions, Cleanup, MonitorLike, parse_cleanup
from memtools.alerts._channels import resolve_channels
from memtools.alerts._delivery import AlertStatistics, DeliveryQueue, DeliveryWorker, ExclusiveChannel, RetryPolicy
from memtools.alerts._incidents import Decision, IncidentTracker, SendAlert, is_observed, observations
from memtools.alerts._message import one_line
from memtools.alerts._protocol import Channel, Deadline
from memtools.alerts._rules import AlertRule, Recipient, as_tuple
from memtools.cleanup import Reclaimer
from memtools.errors import ConfigError
from memtools.events import Event, Subscription, subscribe
from memtools.units import parse_count, parse_seconds

_log = logging.getLogger("memtools.alerts")

_PROBLEM_INTERVAL_S: Final = 300.0  # as the monitor repeats its warnings
_POLL_S: Final = 0.01  # how often an event loop looks whether the threads have ended
_CLOSE_S: Final = 1.0  # how long the end waits for a channel to be closed

_Channels = Mapping[Recipient, ExclusiveChannel]


class Alerts:
    """Notifies people, and acts, by a table of rules when memtools emits an event.

    Works between its start and its end: `with`, `async with`, or `start()` and `stop()`.

    Args:
        rules: the table.
        channels: name to channel; `"log"` always exists, apprise URLs need none.
        monitor: what `immediate_cleanup` runs: the check of a `MemoryMonitor`, which reads memory and acts at once; a
            pass of a `Reclaimer`; the method `clean_up` of an object; a callable. Without one, and for rules with
            thresholds of their own, a pass of a reclaimer with the default steps.
        service: the name of this service in messages; the name of the program by default.
        cooldown: the time after a message in which a recipient is not sent the same again, in seconds.
        timeout: how long one delivery may take, in seconds; a call of a channel that takes longer is abandoned.
        action_timeout: how long an action may take, in seconds.
        queue_size: how many messages wait for a channel that does not answer; beyond it, the oldest is dropped.
        retry_first: the pause after a failure, in seconds; it doubles with each, with jitter.
        retry_max: the longest pause, in seconds; a longer `Retry-After` is honoured, up to an hour.
        give_up_after: the age at which an undelivered message is given up, in seconds.
        drain: how long the end waits for what is not delivered yet, in seconds.

    Raises:
        ConfigError: for values that make no sense.

    Threads: one keeps the queues and one sends; while a channel is slow, another sends to the rest. One runs actions,
    if any rule has one. All are daemon threads. Events are evaluated in the thread that emits them, in some
    microseconds; it never waits.
    Forks: a child starts with nothing open and nothing queued, and starts its threads with its first message.
    """

    def __init__(
        self,
        rules: Iterable[AlertRule],
        *,
        channels: Mapping[str, Channel] | None = None,
        monitor: MonitorLike | Cleanup | Reclaimer | Callable[[], Any] | None = None,  # Any: its result is ignored
        service: str | None = None,
        cooldown: float = 900.0,
        timeout: float = 10.0,
        action_timeout: float = 30.0,
        queue_size: int = 100,
        retry_first: float = 1.0,
        retry_max: float = 60.0,
        give_up_after: float = 3600.0,
        drain: float = 5.0,
    ) -> None:
        self._rules = _rules(rules)
        self._channels = _exclusive(resolve_channels(self._rules, channels or {}))
        self._clean_up = parse_cleanup(monitor)
        self._service = _service(service)
        self._cooldown_s = parse_seconds(cooldown, name="cooldown")
        self._timeout_s = _positive(timeout, name="timeout")
        self._action_timeout_s = _positive(action_timeout, name="action_timeout")
        self._queue_size = parse_count(queue_size, name="queue_size")
        self._retry = RetryPolicy(
            parse_seconds(retry_first, name="retry_first"),
            parse_seconds(retry_max, name="retry_max"),
            parse_seconds(give_up_after, name="give_up_after"),
        )
        self._drain_s = parse_seconds(drain, name="drain")
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._processes: dict[int, _Process] = {}  # by process number: this process and those it was forked from

    @property
    def is_running(self) -> bool:
        """Whether events are received now."""
        return self._subscription is not None

    def start(self) -> None:
        """Open the channels, start the threads and subscribe to events; a second call does nothing.

        Raises:
            MissingExtraError: when a rule names an apprise URL and apprise is not installed.
            ConfigError: when apprise cannot read it.
            OSError: when a file of certificates cannot be read.
        """
        if self._subscription is not None:
            return
        self._channels = self._channels_here()
        _open(self._channels)
        self._pid = os.getpid()
        self._loop = _running_loop()
        process = self._make_process()
        self._processes = {self._pid: process}
        process.start(with_actions=any(rule.has_action for rule in self._rules))
        atexit.register(self._stop_at_exit)
        self._subscription = subscribe(self._on_event)

    def stop(self, *, drain: float | None = None) -> None:
        """Unsubscribe, deliver what waits for at most `drain` seconds, and end the threads; what is left is logged.

        A channel or an action that hangs is not waited for any longer: its thread is abandoned, which the log says.

        Raises:
            ConfigError: if `drain` is no number of seconds.
        """
        deadline = Deadline(self._drain_s if drain is None else parse_seconds(drain, name="drain"))
        process = self._unsubscribe()
        if process is None:
            return
        process.request_stop(deadline)
        process.end(deadline)

    def statistics(self) -> AlertStatistics:
        """Return how alerts fared in this process, from the start until now or until the end."""
        return self._process().statistics()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = Deadline(self._drain_s)
        process = self._unsubscribe()
        if process is None:
            return
        process.request_stop(deadline)
        try:
            # The loop goes on meanwhile: actions may be coroutines on it.
            while process.is_alive and deadline.left_s:  # noqa: ASYNC110  # it waits for threads
                await asyncio.sleep(_POLL_S)
        finally:
            deadline.expire()
            process.end(deadline)

    def __repr__(self) -> str:
        state = "running" if self.is_running else "not running"
        return f"Alerts({len(self._rules)} rules, {', '.join(recipient.name for recipient in self._channels)}; {state})"

    def _on_event(self, event: Event) -> None:
        if is_observed(event):
            self._process().put(event)

    def _process(self) -> "_Process":
        pid = os.getpid()
        process = self._processes.get(pid)
        # A forked child makes its own at the first event: it has neither the threads nor the incidents of its parent.
        return process if process is not None else self._processes.setdefault(pid, self._make_process())

    def _make_process(self) -> "_Process":
        pid = os.getpid()
        problems = RateLimitedLogger(_log, interval_s=_PROBLEM_INTERVAL_S)
        tracker = IncidentTracker(
            self._rules,
            cooldown_s=self._cooldown_s,
            source=one_line(f"{self._service} on {socket.gethostname()} (process {pid})"),
            token=os.urandom(5).hex(),
            wall=time.time,
            context=tuple(line for line in identity() if line[0] != "process"),  # which the source names
        )
        actions = Actions(
            self._clean_up,
            self._loop if pid == self._pid else None,
            timeout_s=self._action_timeout_s,
            problems=problems,
        )
        channels = self._channels_here()
        make_worker = partial(
            DeliveryWorker,
            channels,
            DeliveryQueue(channels, size=self._queue_size, retry=self._retry, jitter=_jitter),
            size=self._queue_size,
            timeout_s=self._timeout_s,
            problems=problems,
        )
        return _Process(tracker, actions, lambda on_timer: make_worker(on_timer=on_timer), channels)

    def _channels_here(self) -> _Channels:
        if os.getpid() == self._pid or not self._pid:
            return self._channels
        # A forked child: a thread of its parent that is in a channel is not in the child's.
        return {recipient: channel.copy() for recipient, channel in self._channels.items()}

    def _unsubscribe(self) -> "_Process | None":
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return None
        subscription.close()
        atexit.unregister(self._stop_at_exit)
        return self._processes.get(os.getpid())  # none in a child that has had no event: it has nothing to end

    def _stop_at_exit(self) -> None:
        # What brought the program down may be waiting to be delivered.
        if os.getpid() == self._pid:  # a forked child has not started it
            warnings.warn(f"{self!r} was never stopped", ResourceWarning, stacklevel=2)
        self.stop()


class _Process:
    """Alerts at work in one process: from the event to the threads that deliver and act.

    Args:
        tracker: the open incidents.
        actions: the thread that runs actions.
        make_worker: makes the delivery worker, given what it has to call at certain times.
        channels: the channels of the worker.

    Threads: `put` is thread-safe and re-entrant, so a finaliser may call it. The thread that gets the lock processes
    what the other threads put meanwhile; these return at once.
    """

    def __init__(
        self,
        tracker: IncidentTracker,
        actions: Actions,
        make_worker: Callable[[Callable[[float], float]], DeliveryWorker],
        channels: _Channels,
    ) -> None:
        self._tracker = tracker
        self._actions = actions
        self._worker = make_worker(self._on_timer)
        self._channels = channels
        self._events: deque[Event | None] = deque()
        self._lock = threading.Lock()
        self._received = self._sent = 0
        self._next_expiry: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread that delivers or the one that acts runs."""
        return self._worker.is_alive or self._actions.is_alive

    def start(self, *, with_actions: bool) -> None:
        """Start the threads that deliver, and the one that acts if it is wanted."""
        self._worker.start()
        if with_actions:
            self._actions.start()

    def put(self, event: Event | None) -> None:
        """Process an event, None to process only what is due by the time."""
        self._events.append(event)
        # Asked again after the lock is free: another thread may have put an event just before.
        while self._events and self._lock.acquire(blocking=False):
            try:
                while self._events:
                    self._evaluate(self._events.popleft())
            finally:
                self._lock.release()

    def request_stop(self, deadline: Deadline) -> None:
        """Have the threads end once all is done, or at the deadline."""
        self._actions.request_stop()
        self._worker.request_stop(deadline)

    def end(self, deadline: Deadline) -> None:
        """Wait for the threads to end, at most until the deadline, and close the channels."""
        self._actions.end(deadline)
        self._worker.end(deadline)
        _close(self._channels)

    def statistics(self) -> AlertStatistics:
        """Return how alerts fared."""
        actions = self._actions
        return AlertStatistics(
            open_incidents=self._tracker.open_incidents,
            received=self._received,
            sent=self._sent,
            actions_run=actions.run,
            actions_failed=actions.failed,
            actions_skipped=actions.skipped,
            channels=self._worker.statistics(),
        )

    def _evaluate(self, event: Event | None) -> None:
        now = time.monotonic()
        if self._next_expiry is not None and now >= self._next_expiry:
            self._dispatch(self._tracker.resolve_stale(now))
        if event is not None:
            self._received += 1
            for observation in observations(event):
                self._dispatch(self._tracker.observe(observation, now))
        before, self._next_expiry = self._next_expiry, self._tracker.next_expiry()
        if before is None and self._next_expiry is not None:
            self._worker.wake()

    def _dispatch(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, SendAlert):
                self._sent += 1
                self._worker.put(decision.recipient, decision.alert)
            else:
                self._actions.submit(decision)
                self._worker.wake()  # it notices an action that takes too long

    def _on_timer(self, now: float) -> float:
        """Do what is due by the time, in the thread of the worker; return when to be called again."""
        self._actions.check_overdue()
        expiry = self._next_expiry
        if expiry is not None and now >= expiry:
            self.put(None)
            expiry = self._next_expiry
        return min(float("inf") if expiry is None else expiry, self._actions.overdue_at())


def _exclusive(channels: Mapping[Recipient, Channel]) -> _Channels:
    # One channel under two names is still one channel.
    made = {id(channel): ExclusiveChannel(channel) for channel in channels.values()}
    return {recipient: made[id(channel)] for recipient, channel in channels.items()}


def _open(channels: _Channels) -> None:
    opened: dict[Recipient, ExclusiveChannel] = {}
    try:
        for recipient, channel in channels.items():
            if channel not in opened.values():
                channel.open()
                opened[recipient] = channel
    except BaseException:
        _close(opened)
        raise


def _close(channels: _Channels) -> None:
    names = {channel: recipient.name for recipient, channel in channels.items()}
    calls: list[tuple[str, AbandonableCall[None]]] = []
    for channel, name in names.items():
        call = AbandonableCall(channel.close, name="memtools-alerts-close")
        try:
            call.start()
        except (RuntimeError, MemoryError):
            channel.close()  # without a thread its time cannot be bounded
        else:
            calls.append((name, call))
    deadline = Deadline(_CLOSE_S)
    for name, call in calls:
        if not call.wait(deadline.left_s) and call.abandon():
            _log.warning("The channel %s was not closed within %g s; its thread was abandoned", name, _CLOSE_S)


def _rules(value: object) -> tuple[AlertRule, ...]:
    given = as_tuple(value)
    rules = tuple(rule for rule in given if isinstance(rule, AlertRule))
    if not rules or len(rules) < len(given):
        raise ConfigError("rules", value, "one AlertRule or several, in a list")
    return rules


def _service(value: object) -> str:
    if value is None:
        return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    if not isinstance(value, str) or not value.strip():
        raise ConfigError("service", value, "the name of the service, as text")
    return value


def _positive(value: object, *, name: str) -> float:
    seconds = parse_seconds(value, name=name)
    if not seconds:
        raise ConfigError(name, value, "seconds as a number above 0")
    return seconds


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _jitter() -> float:
    return random.uniform(0.8, 1.2)
