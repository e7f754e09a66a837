"""The one thread that delivers.

Covers: starting it, waking it, ending it within a deadline, doing without it for as long as none can be started.
Leaves to others: what waits and when it is due (`_outbox`), the deliveries themselves (the channels).

Threads: `post` may be called from anywhere, by one thread at a time, and in a finaliser: `SimpleQueue.put` is made for
that. The outbox belongs to the thread.
"""

import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

from memtools.alerts._alert import Alert
from memtools.alerts._channel import Channel
from memtools.alerts._complaints import Complaints
from memtools.alerts._deadline import Deadline
from memtools.alerts._failure import failure_of
from memtools.alerts._outbox import Outbox, Parcel
from memtools.alerts._statistics import ChannelStatistics
from memtools.alerts._targets import Target

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
        complaints: where failures are said.
    """

    def __init__(
        self,
        channels: Mapping[Target, Channel],
        outbox: Outbox,
        *,
        size: int,
        timeout_s: float,
        beat: Callable[[float], float],
        complaints: Complaints,
    ) -> None:
        self._channels = channels
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._beat = beat
        self._complaints = complaints
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
            self._complaints.say("thread", "No thread can be started to deliver alerts: they wait until one can")
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
            self._complaints.say("stuck", "A delivery goes on past the end of alerts; its thread is left behind")
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
            self._complaints.withdraw(name, "Alerts to %s arrive again, after %d failures", name, failures)

    def _note_failure(self, parcel: Parcel, error: BaseException) -> None:
        failure, name = failure_of(error), parcel.target.name
        pause = self._outbox.failed(parcel, failure, time.monotonic())
        if pause is None:
            words = "An alert to %s was refused and is dropped: %s; %d lost so far"
            self._complaints.say(name, words, name, failure, self._outbox.lost_of(parcel.target))
        else:
            words = "Alerts to %s do not arrive: %s; tried again in %.1f s, %d lost so far"
            self._complaints.say(name, words, name, failure, pause, self._outbox.lost_of(parcel.target))

    def _leave(self) -> None:
        self._collect(0.0)
        self._outbox.leave()
        for channel in self.statistics():
            if channel.left:
                words = "Alerts end with %d undelivered to %s, %d lost in all"
                self._complaints.say(f"left {channel.name}", words, channel.left, channel.name, channel.lost)
