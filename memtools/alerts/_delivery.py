"""Delivery of alerts: the queues of the channels, and the threads that send.

One thread, the worker, keeps the queues and the time; it never calls a channel itself. Senders, threads beside it, make
the calls. As a rule there is one; while it has been in a channel for longer than half a second, another sender serves
the other channels. Once the end is requested, each channel with a message has a sender of its own. A call that is late
as a whole is abandoned together with its sender: no timeout of a socket bounds the lookup of a name, or the channel of
a user.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from memtools._records import record
from memtools._safe_calls import AbandonableCall, RateLimitedLogger
from memtools._threads import OwnThread
from memtools.alerts._message import Alert
from memtools.alerts._protocol import Channel, Deadline, as_delivery_failure
from memtools.alerts._rules import Recipient
from memtools.errors import DeliveryFailed

_log = logging.getLogger("memtools.alerts")

MAX_RETRY_AFTER_S: Final = 3600.0  # a server that asks for a longer pause is asked again after this one
SLOW_CALL_S: Final = 0.5  # a sender that has been in a channel for so long gets another one beside it
_ABANDON_GRACE_S: Final = 0.5  # between the deadline that a channel is given and the moment at which it is abandoned
_START_RETRY_S: Final = 1.0  # between two attempts to start a thread
_JOIN_S: Final = 1.0  # for threads to end after the deadline of the end
_MAX_WAIT_S: Final = 3600.0  # `SimpleQueue.get` rejects what is too long


class ExclusiveChannel:
    """A channel that at most one thread is in.

    An abandoned call keeps the channel until it ends, beyond the end of alerts, too: the channel is closed then, unless
    alerts have been started again by then.

    Attributes:
        on_late_release: called when an abandoned call has given the channel back: the wake of the worker that uses it.

    Threads: any.
    """

    __slots__ = ("_channel", "_is_closing", "_lock", "on_late_release")

    def __init__(self, channel: Channel) -> None:
        self.on_late_release: Callable[[], object] = bool
        self._channel = channel
        self._lock = threading.Lock()  # held while a thread is in the channel
        self._is_closing = False

    def copy(self) -> "ExclusiveChannel":
        """Return the same channel with no thread in it, for the child of a fork."""
        return ExclusiveChannel(self._channel)

    @property
    def is_free(self) -> bool:
        """Whether no thread is in the channel."""
        return not self._lock.locked()

    def acquire(self) -> bool:
        """Take the channel for one call of `send`; return False where a thread is in it."""
        return self._lock.acquire(blocking=False)

    def send(self, alert: Alert, deadline: Deadline) -> None:
        """Deliver `alert`; the caller has acquired the channel."""
        self._channel.send(alert, deadline)

    def release(self) -> None:
        """Give the channel back."""
        self._lock.release()
        self._close_if_free()

    def release_late(self) -> None:
        """Give the channel back after a call that was abandoned."""
        self.release()
        self.on_late_release()

    def open(self) -> None:
        """Open the channel; one with a call still in it has not been closed, and stays open."""
        self._is_closing = False
        if not self.acquire():
            return
        try:
            self._channel.open()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the channel now, or as soon as the call in it has ended."""
        self._is_closing = True
        self._close_if_free()

    def _close_if_free(self) -> None:
        # Asked again by `release` after the lock is free: whichever thread comes last closes.
        if not self._is_closing or not self.acquire():
            return
        try:
            self._is_closing = False
            self._channel.close()
        except Exception as error:  # a channel that cannot be closed must not break the end of the service
            _log.warning("A channel of alerts could not be closed: %s", type(error).__name__)
        finally:
            self._lock.release()


@record
class ChannelStatistics:
    """How one channel fared.

    Attributes:
        name: its name; of an apprise URL the scheme.
        waiting: messages in its queue.
        delivered: messages that the other side took.
        failures: attempts that failed.
        dropped: messages that were dropped because the queue was full.
        expired: messages that were given up because they could not be delivered for too long.
        refused: messages that the other side will never take.
        left: messages that were still waiting when delivery ended.
        abandoned: attempts that were late as a whole and left to their threads; they count as failures, too.
    """

    name: str
    waiting: int
    delivered: int
    failures: int
    dropped: int
    expired: int
    refused: int
    left: int
    abandoned: int

    @property
    def lost(self) -> int:
        """Messages that were not delivered and never will be."""
        return self.dropped + self.expired + self.refused + self.left


@record
class AlertStatistics:
    """How alerts fared since the start.

    Attributes:
        open_incidents: incidents that are open now.
        received: events that were evaluated.
        sent: messages that were handed to a channel, including those that wait.
        actions_run: actions that ended well.
        actions_failed: actions that raised or took too long.
        actions_skipped: actions that were not run: the same one was still running, or had failed too often.
        channels: how each channel fared.
    """

    open_incidents: int
    received: int
    sent: int
    actions_run: int
    actions_failed: int
    actions_skipped: int
    channels: tuple[ChannelStatistics, ...]


@record
class RetryPolicy:
    """How often and how long to try, in seconds.

    Attributes:
        first_s: the pause after the first failure; it doubles with each.
        max_s: the longest pause.
        give_up_s: the age at which a message is given up.
    """

    first_s: float
    max_s: float
    give_up_s: float


@record
class QueuedMessage:
    """One alert on its way to one channel.

    Attributes:
        recipient: the channel.
        alert: what is to be delivered.
        since: when it was put into the queue, in seconds.
    """

    recipient: Recipient
    alert: Alert
    since: float


def _always(_: Recipient) -> bool:
    return True


class DeliveryQueue:
    """The queues of all channels, without a clock, a thread or a socket: the caller passes the time.

    A channel that fails holds up its own queue only. When a channel recovers, new alerts matter more than old ones, so
    of a full queue the oldest message is dropped.

    Args:
        recipients: those that have a channel.
        size: how many messages wait per channel at most.
        retry: how often and how long to try.
        jitter: returns a factor for a pause, so that the processes of a fleet do not come back at the same moment.

    Threads: one at a time; `statistics` may be called from any.
    """

    def __init__(
        self, recipients: Iterable[Recipient], *, size: int, retry: RetryPolicy, jitter: Callable[[], float]
    ) -> None:
        self._queues = {recipient: _ChannelQueue(recipient.name, size) for recipient in recipients}
        self._retry = retry
        self._jitter = jitter

    def put(self, recipient: Recipient, alert: Alert, now: float) -> None:
        """Have `alert` delivered; when the queue is full, the oldest message is dropped."""
        self._queues[recipient].put(QueuedMessage(recipient, alert, now))

    def count_overflow(self, recipient: Recipient, count: int) -> None:
        """Count `count` messages that were dropped before they reached the queue."""
        self._queues[recipient].count_overflow(count)

    def take(self, now: float, is_free: Callable[[Recipient], bool] = _always) -> QueuedMessage | None:
        """Remove and return the next message that is due at a channel that is free; None when there is none."""
        for queue in self._queues.values():
            queue.expire(now - self._retry.give_up_s)
        due = [queue for recipient, queue in self._queues.items() if queue.ready_at() <= now and is_free(recipient)]
        if not due:
            return None
        # One that fails waits for those that do not: there may be no thread for it but the only one.
        return min(due, key=lambda queue: (queue.failures_in_a_row, queue.ready_at())).take()

    def next_due(self, is_free: Callable[[Recipient], bool] = _always) -> float:
        """Return when the next message for a channel that is free is due; infinite when none waits."""
        times = (queue.ready_at() for recipient, queue in self._queues.items() if is_free(recipient))
        return min(times, default=float("inf"))

    def delivered(self, message: QueuedMessage) -> int:
        """Count `message` as delivered; return how many attempts of its channel had failed before."""
        return self._queues[message.recipient].count_delivery()

    def failed(
        self, message: QueuedMessage, failure: DeliveryFailed, now: float, *, is_abandoned: bool = False
    ) -> float | None:
        """Take back `message`, which has not arrived; return the pause until the next try, None if there is none."""
        queue = self._queues[message.recipient]
        queue.failures += 1
        queue.abandoned += is_abandoned
        if not failure.retry:
            queue.refused += 1
            queue.unreported += message.alert.dropped + 1
            return None

        pause = self._pause(queue.failures_in_a_row, failure.retry_after_s)
        queue.failures_in_a_row += 1
        queue.hold_until = now + pause
        queue.requeue(message)
        return pause

    def requeue(self, message: QueuedMessage) -> None:
        """Take back `message`, which has not been tried."""
        self._queues[message.recipient].requeue(message)

    def discard_all(self) -> dict[str, int]:
        """Give up all that waits; return how much that was, by the name of the channel."""
        return {queue.name: count for queue in self._queues.values() if (count := queue.discard_all())}

    def lost_count(self, recipient: Recipient) -> int:
        """Return how many messages to this channel were lost."""
        return self._queues[recipient].statistics(0).lost

    def statistics(self, overflowed: Mapping[Recipient, int] | None = None) -> tuple[ChannelStatistics, ...]:
        """Return how each channel fared; the messages in `overflowed` count as dropped, too."""
        extra = overflowed or {}
        return tuple(queue.statistics(extra.get(recipient, 0)) for recipient, queue in self._queues.items())

    def _pause(self, failures: int, asked_s: float | None) -> float:
        retry = self._retry
        pause = min(retry.first_s * 2.0 ** min(failures, 60), retry.max_s) * self._jitter()
        return pause if asked_s is None else max(min(asked_s, MAX_RETRY_AFTER_S), pause)


class _ChannelQueue:
    """The queue of one channel."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.hold_until = float("-inf")
        self.failures = self.failures_in_a_row = 0
        self.refused = self.abandoned = 0
        self.unreported = 0  # lost since the last message that said how many were lost
        self._size = size
        self._waiting: deque[QueuedMessage] = deque()
        self._delivered = self._dropped = self._expired = self._left = 0

    def ready_at(self) -> float:
        return max(self._waiting[0].since, self.hold_until) if self._waiting else float("inf")

    def put(self, message: QueuedMessage) -> None:
        if len(self._waiting) >= self._size:
            self._lose(self._waiting.popleft())
            self._dropped += 1
        self._waiting.append(message)

    def requeue(self, message: QueuedMessage) -> None:
        if len(self._waiting) >= self._size:
            self._lose(message)
            self._dropped += 1
        else:
            self._waiting.appendleft(message)

    def count_overflow(self, count: int) -> None:
        self._dropped += count
        self.unreported += count

    def expire(self, before: float) -> None:
        while self._waiting and self._waiting[0].since < before:
            self._lose(self._waiting.popleft())
            self._expired += 1

    def take(self) -> QueuedMessage:
        message = self._waiting.popleft()
        lost, self.unreported = self.unreported, 0
        return message if not lost else QueuedMessage(message.recipient, _with_lost(message.alert, lost), message.since)

    def count_delivery(self) -> int:
        failures, self.failures_in_a_row = self.failures_in_a_row, 0
        self.hold_until = float("-inf")
        self._delivered += 1
        return failures

    def discard_all(self) -> int:
        count = len(self._waiting)
        self._left += count
        self._waiting.clear()
        return count

    def statistics(self, overflowed: int) -> ChannelStatistics:
        return ChannelStatistics(
            self.name,
            len(self._waiting),
            self._delivered,
            self.failures,
            self._dropped + overflowed,
            self._expired,
            self.refused,
            self._left,
            self.abandoned,
        )

    def _lose(self, message: QueuedMessage) -> None:
        # A message that was to report lost ones takes their count along.
        self.unreported += message.alert.dropped + 1


def _with_lost(alert: Alert, lost: int) -> Alert:
    made: Any = alert  # Any: `__replace__` of records is not declared
    changed: Alert = made.__replace__(dropped=alert.dropped + lost)
    return changed


class _Sender:
    """A daemon thread that makes calls of channels, one after another.

    Args:
        on_end: called in the thread after each call.
    """

    def __init__(self, on_end: Callable[[], object]) -> None:
        self._on_end = on_end
        self._calls: SimpleQueue[AbandonableCall[None] | None] = SimpleQueue()
        self.thread = OwnThread(target=self._run, name="memtools-alerts-sender", daemon=True)

    def submit(self, call: AbandonableCall[None]) -> None:
        self._calls.put(call)

    def stop(self) -> None:
        """Have the thread end, after the call that it is in."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            self._on_end()


class _Attempt:
    """A call of a channel that is under way."""

    __slots__ = ("call", "channel", "deadline", "late_at", "message", "sender", "started_at")

    def __init__(
        self,
        message: QueuedMessage,
        channel: ExclusiveChannel,
        sender: _Sender,
        *,
        seconds: float,
        grace_s: float,
        now: float,
    ) -> None:
        self.message = message
        self.channel = channel
        self.sender = sender
        self.started_at = now
        self.late_at = now + seconds + grace_s
        self.deadline = Deadline(seconds)
        self.call = AbandonableCall(
            partial(channel.send, message.alert, self.deadline),
            name=sender.thread.name,
            on_late_end=channel.release_late,
        )


class DeliveryWorker:
    """The thread that has messages delivered, one at a time for each channel.

    Args:
        channels: the channel of each recipient.
        queue: the queues; they belong to the thread.
        size: how many messages may be put while the thread is busy, per channel.
        timeout_s: how long one delivery may take.
        on_timer: called between deliveries with the time; returns when to call it again.
        problems: where failures are logged.

    Threads: `put` may be called from any, by one at a time, and in a finaliser: `SimpleQueue.put` is made for that.
    """

    def __init__(
        self,
        channels: Mapping[Recipient, ExclusiveChannel],
        queue: DeliveryQueue,
        *,
        size: int,
        timeout_s: float,
        on_timer: Callable[[float], float],
        problems: RateLimitedLogger,
    ) -> None:
        self._channels = channels
        for channel in channels.values():
            channel.on_late_release = self._on_call_end
        self._queue = queue
        self._timeout_s = timeout_s
        self._on_timer = on_timer
        self._problems = problems
        self._inbox: SimpleQueue[tuple[Recipient, Alert] | None] = SimpleQueue()
        self._inbox_size = size * max(len(channels), 1)
        self._overflowed = dict.fromkeys(channels, 0)
        self._counted = dict.fromkeys(channels, 0)  # of those, the ones that the queue has counted
        self._thread: threading.Thread | None = None
        self._idle: list[_Sender] = []
        self._under_way: list[_Attempt] = []
        self._abandoned: list[_Attempt] = []
        self._start_retry_at = float("-inf")
        self._stop_at: float | None = None
        self._ended = False

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, unless it runs; where none can be started, the next `put` tries again."""
        if self.is_alive or self._ended:
            return
        thread = OwnThread(target=self._run, name="memtools-alerts", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._warn_of_no_thread()
            return
        self._thread = thread

    def put(self, recipient: Recipient, alert: Alert) -> None:
        """Have `alert` delivered; never waits."""
        # The queue bounds what the thread has taken in; this bounds the inbox while the thread is busy.
        if self._inbox.qsize() >= self._inbox_size:
            self._overflowed[recipient] += 1
        else:
            self._inbox.put((recipient, alert))
        self.start()

    def wake(self) -> None:
        """Have the thread go through its loop once, `on_timer` included."""
        if self.is_alive:
            self._inbox.put(None)

    def request_stop(self, deadline: Deadline) -> None:
        """Have the thread end once all is delivered, or at the deadline."""
        self._stop_at = time.monotonic() + deadline.left_s
        self.wake()

    def end(self, deadline: Deadline) -> None:
        """Wait for the threads, at most until the deadline and a second more, and report what is left undelivered."""
        self._join_worker(deadline)
        self._ended = True
        if self.is_alive:
            self._problems.warning("stuck", "Alerts stopped while their thread was busy; it was abandoned")
            return
        stuck = self._join_senders()
        if stuck:
            text = "Alerts stopped while deliveries to %s were running; their threads were abandoned (%d)"
            self._problems.warning("stuck", text, ", ".join(dict.fromkeys(stuck)), len(stuck))
        self._report_undelivered()

    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Return how each channel fared."""
        uncounted = {recipient: count - self._counted[recipient] for recipient, count in self._overflowed.items()}
        return self._queue.statistics(uncounted)

    def _run(self) -> None:
        sender = self._take_sender(time.monotonic())  # now: later memory may be too short for a thread
        if sender is not None:
            self._idle.append(sender)
        while True:
            timer_at = self._on_timer(time.monotonic())
            self._finish_attempts(time.monotonic())
            if self._is_over():
                break
            next_at = self._start_attempts()
            self._drain_inbox(min(timer_at, next_at, self._stop_at or float("inf")))
        self._finish_attempts(float("inf"))

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        if self._ended or time.monotonic() >= self._stop_at:
            return True
        return not self._under_way and self._inbox.empty() and self._queue.next_due(self._is_free) > self._stop_at

    def _on_call_end(self) -> None:
        # Not `wake`: the call may end before `start` has noted that the thread runs.
        self._inbox.put(None)

    def _is_free(self, recipient: Recipient) -> bool:
        return self._channels[recipient].is_free

    def _start_attempts(self) -> float:
        """Hand the messages that are due to senders; return when there is more to do, unless a call ends before."""
        now = time.monotonic()
        while (due_at := self._queue.next_due(self._is_free)) <= now:
            sender = self._take_sender(now)
            if sender is None:
                due_at = self._next_sender_at()
                break
            message = self._queue.take(now, self._is_free)
            if message is None:  # it has expired
                self._idle.append(sender)
            else:
                self._start(message, sender, now)
        return min([due_at, *(attempt.late_at for attempt in self._under_way)])

    def _next_sender_at(self) -> float:
        if self._stop_at is not None:
            return self._start_retry_at  # time is short: a channel that hangs must not use up that of the others
        # The latest call may be over in a moment: then its sender is free again.
        slow_at = self._under_way[-1].started_at + SLOW_CALL_S if self._under_way else float("-inf")
        return max(slow_at, self._start_retry_at)

    def _take_sender(self, now: float) -> _Sender | None:
        if self._idle:
            return self._idle.pop()
        if now < self._next_sender_at():
            return None
        sender = _Sender(self._on_call_end)
        try:
            sender.thread.start()
        except (RuntimeError, MemoryError):
            self._start_retry_at = now + _START_RETRY_S
            self._warn_of_no_thread()
            return None
        return sender

    def _start(self, message: QueuedMessage, sender: _Sender, now: float) -> None:
        channel = self._channels[message.recipient]
        if not channel.acquire():
            self._idle.append(sender)
            self._queue.requeue(message)
            return
        seconds = self._timeout_s
        if self._stop_at is not None:
            seconds = min(seconds, max(self._stop_at - now, 0.0))
        grace_s = min(self._timeout_s, _ABANDON_GRACE_S)
        attempt = _Attempt(message, channel, sender, seconds=seconds, grace_s=grace_s, now=now)
        self._under_way.append(attempt)
        sender.submit(attempt.call)

    def _finish_attempts(self, now: float) -> None:
        """Record how those went whose calls have ended, and abandon those that are late at `now`."""
        for attempt in self._under_way.copy():
            call = attempt.call
            if not call.wait(0) and now >= attempt.late_at and call.abandon():
                self._under_way.remove(attempt)
                self._abandon(attempt)
            elif call.wait(_JOIN_S if now >= attempt.late_at else 0):  # what was not abandoned has just ended
                self._under_way.remove(attempt)
                self._finish(attempt)

    def _finish(self, attempt: _Attempt) -> None:
        attempt.channel.release()
        if self._idle:
            attempt.sender.stop()
        else:
            self._idle.append(attempt.sender)
        error, attempt.call.error = attempt.call.error, None  # its traceback would keep the frames of the call
        if error is None:
            self._record_delivery(attempt.message)
        else:
            self._record_failure(attempt.message, as_delivery_failure(error))

    def _abandon(self, attempt: _Attempt) -> None:
        self._abandoned = [former for former in self._abandoned if former.sender.thread.is_alive()]
        self._abandoned.append(attempt)
        attempt.deadline.expire()
        attempt.sender.stop()
        failure = DeliveryFailed("no answer in time, its thread was abandoned")
        self._record_failure(attempt.message, failure, is_abandoned=True)

    def _drain_inbox(self, until: float) -> None:
        wait = min(until - time.monotonic(), _MAX_WAIT_S)
        try:
            self._count_overflow()
            posted = self._inbox.get(timeout=wait) if wait > 0 else self._inbox.get_nowait()
            while True:
                if posted is not None:
                    self._queue.put(*posted, time.monotonic())
                posted = self._inbox.get_nowait()
        except Empty:
            return

    def _count_overflow(self) -> None:
        # Two counts that only grow, each written by one thread: no lock is needed.
        for recipient, count in self._overflowed.items():
            self._queue.count_overflow(recipient, count - self._counted[recipient])
            self._counted[recipient] = count

    def _record_delivery(self, message: QueuedMessage) -> None:
        failures = self._queue.delivered(message)
        if failures:
            name = message.recipient.name
            self._problems.resolved(name, "Alerts to %s arrive again, after %d failures", name, failures)

    def _record_failure(self, message: QueuedMessage, failure: DeliveryFailed, *, is_abandoned: bool = False) -> None:
        name = message.recipient.name
        pause = self._queue.failed(message, failure, time.monotonic(), is_abandoned=is_abandoned)
        lost = self._queue.lost_count(message.recipient)
        if pause is None:
            text = "An alert to %s was refused and is dropped: %s; %d lost so far"
            self._problems.warning(name, text, name, failure, lost)
        else:
            text = "Alerts to %s do not arrive: %s; next try in %.1f s at the earliest, %d lost so far"
            self._problems.warning(name, text, name, failure, pause, lost)

    def _warn_of_no_thread(self) -> None:
        self._problems.warning("thread", "No thread can be started to deliver alerts: they wait until one can")

    def _join_worker(self, deadline: Deadline) -> None:
        current, thread = threading.current_thread(), self._thread
        if thread is None or thread is current:
            return
        # A channel may stop alerts, in a sender: its own call is not waited for.
        if any(attempt.sender.thread is current for attempt in self._under_way.copy()):
            self._abort()
        thread.join(deadline.left_s)
        if thread.is_alive():
            self._abort()
            thread.join(_JOIN_S)

    def _abort(self) -> None:
        self._stop_at = time.monotonic()
        self.wake()

    def _join_senders(self) -> list[str]:
        """Wait for the senders, for a second at most; return the recipients whose calls still run."""
        for sender in self._idle:
            sender.stop()
        joined_by = time.monotonic() + _JOIN_S
        current = threading.current_thread()
        for sender in [*self._idle, *(attempt.sender for attempt in self._abandoned)]:
            if sender.thread is not current:
                sender.thread.join(max(joined_by - time.monotonic(), 0.0))
        return [attempt.message.recipient.name for attempt in self._abandoned if attempt.sender.thread.is_alive()]

    def _report_undelivered(self) -> None:
        self._drain_inbox(0.0)
        self._queue.discard_all()
        for channel in self.statistics():
            if channel.left:
                text = "Alerts stopped with %d undelivered to %s, %d lost in all"
                self._problems.warning(f"left {channel.name}", text, channel.left, channel.name, channel.lost)
