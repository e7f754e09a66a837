"""What waits to be delivered: a bounded queue per channel, and when to try again.

A queue without a clock, a thread or a socket: it is told the time.
Covers: order within a channel, back-off, `Retry-After`, giving up, counting what is lost.
Leaves to others: delivering (`_postman`), saying what was lost (`_complaints`).

A channel that fails holds up its own queue only. Of a full queue the oldest goes: when a channel comes back after an
hour, what is the matter now is worth more than what was the matter then.

Threads: one at a time; `statistics` may be asked from any.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from memtools.alerts._alert import Alert
from memtools.alerts._failure import DeliveryFailed
from memtools.alerts._statistics import ChannelStatistics
from memtools.alerts._targets import Target
from memtools.records import record

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
            box.unsaid += parcel.alert.lost + 1
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
        self.unsaid += parcel.alert.lost + 1


def _losing(alert: Alert, lost: int) -> Alert:
    made: Any = alert  # what every record has is not declared
    changed: Alert = made.__replace__(lost=alert.lost + lost)
    return changed
