"""What waits to be delivered: a bounded queue per channel, and when to try again.

A queue without a clock, a thread or a socket: it is told the time.
Covers: order within a channel, back-off, `Retry-After`, giving up, counting what is lost.
Leaves to others: delivering (`_postman`), saying what was lost (`_complaints`).

A channel that fails holds up its own queue only. Of a full queue the oldest goes: when a channel comes back after an
hour, what is the matter now is worth more than what was the matter then.

Threads: one at a time; `statistics` may be asked from any.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Final

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools.alerts._channels import Channel
from memtools.alerts._message import Alert
from memtools.alerts._rules import Target
from memtools.alerts._transport import Deadline, DeliveryFailed, failure_of

# How alerts fared, in numbers.
#
# Leaves to others: counting (`_outbox`, `_actions`, `_alerts`).


@record
class ChannelStatistics:
    """How one channel fared.

    Attributes:
        name: its name; of an apprise URL the scheme.
        waiting: messages in its queue.
        delivered: messages that the other side took.
        failures: attempts that failed.
        dropped: messages that were pushed out of the full queue.
        expired: messages that were given up, as they could not be delivered for too long.
        refused: messages that the other side will never take.
        left: messages that were still there when delivery ended.
    """

    name: str
    waiting: int
    delivered: int
    failures: int
    dropped: int
    expired: int
    refused: int
    left: int

    @property
    def lost(self) -> int:
        """Messages that were not delivered and never will be."""
        return self.dropped + self.expired + self.refused + self.left


@record
class AlertStatistics:
    """How alerts fared since the start.

    Attributes:
        open_incidents: what is the matter now.
        heard: facts that were looked at.
        told: messages that were handed to a channel, with those that wait.
        actions_run: actions that ended well.
        actions_failed: actions that raised or took too long.
        actions_skipped: actions that were not run: the same one was still at it, or had failed too often.
        channels: how each channel fared.
    """

    open_incidents: int
    received: int
    sent: int
    actions_run: int
    actions_failed: int
    actions_skipped: int
    channels: tuple[ChannelStatistics, ...]


_NOTHING: Final[Mapping[Target, int]] = {}
RETRY_AFTER_AT_MOST_S: Final = 3600.0  # nobody is left alone for longer, whatever is asked for


@record
class Patience:
    """How often and how long to try, in seconds.

    Attributes:
        first_s: the pause after the first failure; it doubles with each.
        most_s: the longest pause.
        give_up_s: the age at which a message is given up.
    """

    first_s: float
    most_s: float
    give_up_s: float


@record
class Parcel:
    """One alert on its way to one channel.

    Attributes:
        target: the channel.
        alert: what is to be delivered.
        since: when it was put into the queue, in seconds.
    """

    target: Target
    alert: Alert
    since: float


class Outbox:
    """The queues of all channels.

    Args:
        targets: those that have a channel.
        size: how many messages wait per channel at most.
        patience: how often and how long to try.
        jitter: returns a factor for a pause, so that not all processes of a fleet come back at once.
    """

    def __init__(
        self, targets: Iterable[Target], *, size: int, patience: Patience, jitter: Callable[[], float]
    ) -> None:
        self._boxes = {target: _Box(target.name, size) for target in targets}
        self._patience = patience
        self._jitter = jitter

    def put(self, target: Target, alert: Alert, now: float) -> None:
        """Have `alert` delivered; of a full queue the oldest message goes."""
        self._boxes[target].put(Parcel(target, alert, now))

    def note_overflow(self, target: Target, count: int) -> None:
        """Note that `count` messages were dropped before they got here."""
        self._boxes[target].note_overflow(count)

    def take(self, now: float) -> Parcel | None:
        """Return the next that is due, which waits no more; None when none is due."""
        for box in self._boxes.values():
            box.expire(now - self._patience.give_up_s)
        due = [box for box in self._boxes.values() if box.ready_at() <= now]
        if not due:
            return None
        box = min(due, key=_Box.ready_at)
        return box.take()

    def next_due(self) -> float:
        """Return when the next may be due; infinite when nothing waits."""
        return min((box.ready_at() for box in self._boxes.values()), default=float("inf"))

    def delivered(self, parcel: Parcel) -> int:
        """Note that `parcel` has arrived; return how many attempts of its channel had failed before."""
        return self._boxes[parcel.target].note_delivery()

    def failed(self, parcel: Parcel, failure: DeliveryFailed, now: float) -> float | None:
        """Note that `parcel` has not arrived; return the seconds until the next try, None if there will be none."""
        box = self._boxes[parcel.target]
        box.failures += 1
        if not failure.retry:
            box.refused += 1
            box.unsaid += parcel.alert.dropped + 1
            return None

        pause = self._pause(box.failures_in_a_row, failure.retry_after_s)
        box.failures_in_a_row += 1
        box.hold_until = now + pause
        box.put_back(parcel)
        return pause

    def leave(self) -> dict[str, int]:
        """Give up what waits; return how much that was, by the name of the channel."""
        return {box.name: count for box in self._boxes.values() if (count := box.leave())}

    def lost_of(self, target: Target) -> int:
        """Return how many messages to this channel were lost."""
        return self._boxes[target].statistics().lost

    def statistics(self, overflowed: Mapping[Target, int] = _NOTHING) -> tuple[ChannelStatistics, ...]:
        """Return how each channel fared; what is `overflowed` besides counts as dropped."""
        return tuple(box.statistics(overflowed.get(target, 0)) for target, box in self._boxes.items())

    def _pause(self, failures: int, asked_s: float | None) -> float:
        patience = self._patience
        pause = min(patience.first_s * 2.0 ** min(failures, 60), patience.most_s) * self._jitter()
        return pause if asked_s is None else max(min(asked_s, RETRY_AFTER_AT_MOST_S), pause)


class _Box:
    """The queue of one channel."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.hold_until = float("-inf")
        self.failures = self.failures_in_a_row = 0
        self.refused = 0
        self.unsaid = 0  # lost since the last message that told how many are lost
        self._size = size
        self._waiting: deque[Parcel] = deque()
        self._delivered = self._dropped = self._expired = self._left = 0

    def ready_at(self) -> float:
        return max(self._waiting[0].since, self.hold_until) if self._waiting else float("inf")

    def put(self, parcel: Parcel) -> None:
        if len(self._waiting) >= self._size:
            self._lose(self._waiting.popleft())
            self._dropped += 1
        self._waiting.append(parcel)

    def put_back(self, parcel: Parcel) -> None:
        if len(self._waiting) >= self._size:
            self._lose(parcel)
            self._dropped += 1
        else:
            self._waiting.appendleft(parcel)

    def note_overflow(self, count: int) -> None:
        self._dropped += count
        self.unsaid += count

    def expire(self, before: float) -> None:
        while self._waiting and self._waiting[0].since < before:
            self._lose(self._waiting.popleft())
            self._expired += 1

    def take(self) -> Parcel:
        parcel = self._waiting.popleft()
        lost, self.unsaid = self.unsaid, 0
        return parcel if not lost else Parcel(parcel.target, _losing(parcel.alert, lost), parcel.since)

    def note_delivery(self) -> int:
        failures, self.failures_in_a_row = self.failures_in_a_row, 0
        self.hold_until = float("-inf")
        self._delivered += 1
        return failures

    def leave(self) -> int:
        count = len(self._waiting)
        self._left += count
        self._waiting.clear()
        return count

    def statistics(self, overflowed: int = 0) -> ChannelStatistics:
        return ChannelStatistics(
            self.name,
            len(self._waiting),
            self._delivered,
            self.failures,
            self._dropped + overflowed,
            self._expired,
            self.refused,
            self._left,
        )

    def _lose(self, parcel: Parcel) -> None:
        # One that would itself have told of others takes them along.
        self.unsaid += parcel.alert.dropped + 1


def _losing(alert: Alert, lost: int) -> Alert:
    made: Any = alert  # what every record has is not declared
    changed: Alert = made.__replace__(dropped=alert.dropped + lost)
    return changed


# The one thread that delivers.
#
# Covers: starting it, waking it, ending it within a deadline, doing without it for as long as none can be started.
# Leaves to others: what waits and when it is due (`_outbox`), the deliveries themselves (the channels).
#
# Threads: `post` may be called from anywhere, by one thread at a time, and in a finaliser: `SimpleQueue.put` is made for
# that. The outbox belongs to the thread.

_NAP_AT_MOST_S = 3600.0  # `SimpleQueue.get` refuses what is too long
_LAST_BREATH_S = 1.0  # for a delivery that has been cut short to end
_Posted = tuple[Target, Alert]


class Postman:
    """Delivers what is posted, one message at a time.

    Args:
        channels: what stands behind each target.
        outbox: the queues.
        size: how many messages may be posted while a delivery is under way, per channel.
        timeout_s: how long one delivery may take.
        beat: called between deliveries with the time; returns when to call it again.
        problems: where failures are said.
    """

    def __init__(
        self,
        channels: Mapping[Target, Channel],
        outbox: Outbox,
        *,
        size: int,
        timeout_s: float,
        beat: Callable[[float], float],
        problems: RateLimitedLogger,
    ) -> None:
        self._channels = channels
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._beat = beat
        self._problems = problems
        self._posted: SimpleQueue[_Posted | None] = SimpleQueue()
        self._posted_at_most = size * max(len(channels), 1)
        self._overflowed = dict.fromkeys(channels, 0)
        self._noted = dict.fromkeys(channels, 0)  # of those, the ones that the outbox knows of
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._under_way: Deadline | None = None
        self._ended = False

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, unless it runs; where none can be started, the next post tries again."""
        if self.is_alive or self._ended:
            return
        thread = threading.Thread(target=self._work, name="memtools-alerts", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._problems.warning("thread", "No thread can be started to deliver alerts: they wait until one can")
            return
        self._thread = thread

    def post(self, target: Target, alert: Alert) -> None:
        """Have `alert` delivered; never waits."""
        # Only while one delivery takes its time; what the thread has taken in is bounded by the outbox.
        if self._posted.qsize() >= self._posted_at_most:
            self._overflowed[target] += 1
        else:
            self._posted.put((target, alert))
        self.start()

    def wake(self) -> None:
        """Have the beat called."""
        if self.is_alive:
            self._posted.put(None)

    def ask_to_end(self, deadline: Deadline) -> None:
        """Have the thread end once all is delivered, or at the deadline."""
        self._stop_at = time.monotonic() + deadline.left_s
        self.wake()

    def cut(self) -> None:
        """End a delivery that is under way."""
        self._stop_at = time.monotonic()
        under_way = self._under_way
        if under_way is not None:
            under_way.cut()
        self.wake()

    def end(self, deadline: Deadline) -> None:
        """Wait for the thread, at most until the deadline, then cut it short; say what is left undelivered."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(deadline.left_s)
            if thread.is_alive():
                self.cut()
                thread.join(_LAST_BREATH_S)
        self._ended = True
        if self.is_alive:
            # A channel of the user's that obeys no deadline, or a name server that does not answer.
            self._problems.warning("stuck", "A delivery goes on past the end of alerts; its thread is left behind")
            return
        self._leave()

    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Return how each channel fared."""
        unknown = {target: count - self._noted[target] for target, count in self._overflowed.items()}
        return self._outbox.statistics(unknown)

    def _work(self) -> None:
        while not self._is_over():
            beat_at = self._beat(time.monotonic())
            parcel = self._outbox.take(time.monotonic())
            if parcel is None:
                self._collect(min(self._outbox.next_due(), beat_at, self._stop_at or float("inf")))
            else:
                self._deliver(parcel)
                self._collect(0.0)

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        if self._ended or time.monotonic() >= self._stop_at:
            return True
        return self._posted.empty() and self._outbox.next_due() > self._stop_at

    def _collect(self, until: float) -> None:
        nap = min(until - time.monotonic(), _NAP_AT_MOST_S)
        try:
            self._note_overflow()
            posted = self._posted.get(timeout=nap) if nap > 0 else self._posted.get_nowait()
            while True:
                if posted is not None:
                    self._outbox.put(*posted, time.monotonic())
                posted = self._posted.get_nowait()
        except Empty:
            return

    def _note_overflow(self) -> None:
        # Two counts that only grow, each written by one thread: no lock is needed.
        for target, count in self._overflowed.items():
            self._outbox.note_overflow(target, count - self._noted[target])
            self._noted[target] = count

    def _deliver(self, parcel: Parcel) -> None:
        seconds = self._timeout_s
        if self._stop_at is not None:
            seconds = min(seconds, max(self._stop_at - time.monotonic(), 0.0))
        self._under_way = Deadline(seconds)
        try:
            self._channels[parcel.target].send(parcel.alert, self._under_way)
        except BaseException as error:  # this thread is nobody's: there is no one to pass it on to
            self._note_failure(parcel, error)
        else:
            self._note_delivery(parcel)
        finally:
            self._under_way = None

    def _note_delivery(self, parcel: Parcel) -> None:
        failures = self._outbox.delivered(parcel)
        if failures:
            name = parcel.target.name
            self._problems.resolved(name, "Alerts to %s arrive again, after %d failures", name, failures)

    def _note_failure(self, parcel: Parcel, error: BaseException) -> None:
        failure, name = failure_of(error), parcel.target.name
        pause = self._outbox.failed(parcel, failure, time.monotonic())
        if pause is None:
            words = "An alert to %s was refused and is dropped: %s; %d lost so far"
            self._problems.warning(name, words, name, failure, self._outbox.lost_of(parcel.target))
        else:
            words = "Alerts to %s do not arrive: %s; tried again in %.1f s, %d lost so far"
            self._problems.warning(name, words, name, failure, pause, self._outbox.lost_of(parcel.target))

    def _leave(self) -> None:
        self._collect(0.0)
        self._outbox.leave()
        for channel in self.statistics():
            if channel.left:
                words = "Alerts end with %d undelivered to %s, %d lost in all"
                self._problems.warning(f"left {channel.name}", words, channel.left, channel.name, channel.lost)
