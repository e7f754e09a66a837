"""A channel that hangs holds up no other channel and no end, and is not entered by a second thread."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from memtools.alerts import Alert, AlertRule, Alerts, ChannelStatistics, Deadline, WebhookChannel
from memtools.events import LevelChanged, TaskAbandoned, emit
from memtools.readings import Level

Wait = Callable[[Callable[[], object]], None]
Change = Callable[[Level], LevelChanged]


class Recording(Protocol):
    alerts: list[Alert]
    calls: list[str]

    def open(self) -> None: ...
    def send(self, alert: Alert, deadline: Deadline, /) -> None: ...
    def close(self) -> None: ...


class BlockingChannel:
    """A channel that ignores its deadline and blocks until it is released."""

    def __init__(self, release: threading.Event) -> None:
        self.started = 0
        self.calls: list[str] = []
        self.inside = self.max_inside = 0
        self._release = release

    def open(self) -> None:
        self.calls.append("open")

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        self.inside += 1
        self.max_inside = max(self.max_inside, self.inside)
        self.started += 1
        self._release.wait()
        self.inside -= 1

    def close(self) -> None:
        assert not self.inside
        self.calls.append("close")


@pytest.fixture
def blocking(release: threading.Event) -> BlockingChannel:
    """A channel that blocks until `release` is set."""
    return BlockingChannel(release)


def channel_statistics(alerts: Alerts, name: str) -> ChannelStatistics:
    return next(channel for channel in alerts.statistics().channels if channel.name == name)


def sender_threads() -> int:
    return sum(thread.name == "memtools-alerts-sender" for thread in threading.enumerate())


RULE = AlertRule("warning", notify=("hung", "people"))


class TestHungChannel:
    def test_other_channels_deliver_long_before_its_timeout(
        self, change: Change, wait_until: Wait, recorder: Recording, blocking: BlockingChannel, release: threading.Event
    ) -> None:
        begun = time.monotonic()

        with Alerts([RULE], channels={"hung": blocking, "people": recorder}, timeout=60) as alerts:
            emit(change(Level.WARNING))
            wait_until(lambda: recorder.alerts)
            took = time.monotonic() - begun
            release.set()

        assert took < 10
        assert (channel_statistics(alerts, "hung").delivered, channel_statistics(alerts, "hung").abandoned) == (1, 0)

    def test_several_of_them_leave_the_last_one_its_share_of_the_end(
        self, change: Change, recorder: Recording, release: threading.Event
    ) -> None:
        hung = {f"hung-{number}": BlockingChannel(release) for number in range(8)}
        rule = AlertRule("warning", notify=(*hung, "people"))

        # Eight halves of a second, after each of which another sender starts, are more than the end waits.
        with Alerts([rule], channels={**hung, "people": recorder}, timeout=60, drain=1.0) as alerts:
            emit(change(Level.WARNING))
        delivered = [alert.level for alert in recorder.alerts]
        release.set()

        assert delivered == [Level.WARNING]
        assert [channel_statistics(alerts, name).delivered for name in ("hung-0", "people")] == [0, 1]

    def test_late_call_is_counted_as_failed_and_abandoned(
        self,
        change: Change,
        wait_until: Wait,
        recorder: Recording,
        blocking: BlockingChannel,
        release: threading.Event,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        channels = {"hung": blocking, "people": recorder}
        with Alerts([RULE], channels=channels, timeout=0.05, retry_first=0.01, drain=0.1) as alerts:
            emit(change(Level.WARNING))
            wait_until(lambda: channel_statistics(alerts, "hung").abandoned)
            release.set()

        assert channel_statistics(alerts, "hung").failures == 1
        assert "hung do not arrive: no answer in time, its thread was abandoned" in caplog.text

    def test_channel_is_not_entered_while_a_call_is_in_it(
        self, change: Change, wait_until: Wait, recorder: Recording, blocking: BlockingChannel, release: threading.Event
    ) -> None:
        channels = {"hung": blocking, "people": recorder}
        with Alerts([RULE], channels=channels, timeout=0.02, retry_first=0.01) as alerts:
            for number in range(20):
                emit(TaskAbandoned("scope", f"task {number}", 1.0))
            wait_until(lambda: len(recorder.alerts) == 20 and channel_statistics(alerts, "hung").abandoned)
            time.sleep(0.1)  # ten times the pause before the next try
            started_while_hung, threads = blocking.started, sender_threads()
            release.set()
            wait_until(lambda: channel_statistics(alerts, "hung").delivered == 20)

        assert started_while_hung == 1
        assert threads <= 2
        assert blocking.max_inside == 1
        assert blocking.started == 21  # the call that was late has arrived, too

    def test_one_channel_under_two_names_is_one_channel(
        self, change: Change, wait_until: Wait, blocking: BlockingChannel, release: threading.Event
    ) -> None:
        rule = AlertRule("warning", notify=("one", "two"))
        with Alerts([rule], channels={"one": blocking, "two": blocking}, timeout=0.02) as alerts:
            emit(change(Level.WARNING))
            wait_until(lambda: channel_statistics(alerts, "one").abandoned)
            time.sleep(0.1)
            started_while_hung = blocking.started
            release.set()
            wait_until(lambda: channel_statistics(alerts, "two").delivered)

        assert started_while_hung == 1
        assert blocking.calls == ["open", "close"]

    def test_many_hung_channels_leave_the_last_one_served(
        self, change: Change, wait_until: Wait, recorder: Recording, release: threading.Event
    ) -> None:
        hung = {f"hung-{number}": BlockingChannel(release) for number in range(3)}
        rule = AlertRule("warning", notify=(*hung, "people"))

        with Alerts([rule], channels={**hung, "people": recorder}, timeout=60) as alerts:
            emit(change(Level.WARNING))
            wait_until(lambda: recorder.alerts)
            threads = sender_threads()
            release.set()

        assert threads == 4
        assert all(channel_statistics(alerts, name).delivered == 1 for name in hung)

    def test_senders_beyond_one_end_when_no_channel_is_slow(
        self, change: Change, wait_until: Wait, recorder: Recording, blocking: BlockingChannel, release: threading.Event
    ) -> None:
        with Alerts([RULE], channels={"hung": blocking, "people": recorder}, timeout=60):
            emit(change(Level.WARNING))
            wait_until(lambda: recorder.alerts)
            release.set()
            wait_until(lambda: sender_threads() == 1)
            emit(change(Level.NORMAL))
            wait_until(lambda: len(recorder.alerts) == 2)

            assert sender_threads() == 1


class TestEndWithHungChannel:
    def test_stop_returns_and_the_late_call_closes_the_channel(
        self,
        change: Change,
        wait_until: Wait,
        blocking: BlockingChannel,
        release: threading.Event,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        alerts = Alerts([AlertRule("warning", notify="hung")], channels={"hung": blocking}, timeout=60)
        alerts.start()
        emit(change(Level.WARNING))
        wait_until(lambda: blocking.started)
        begun = time.monotonic()

        alerts.stop(drain=0.05)

        assert time.monotonic() - begun < 5
        assert blocking.calls == ["open"]
        assert "deliveries to hung were running; their threads were abandoned (1)" in caplog.text
        assert "Alerts stopped with 1 undelivered to hung" in caplog.text
        release.set()
        wait_until(lambda: blocking.calls == ["open", "close"])

    def test_restart_waits_for_the_late_call_of_the_channel(
        self, change: Change, wait_until: Wait, blocking: BlockingChannel, release: threading.Event
    ) -> None:
        alerts = Alerts([AlertRule("warning", notify="hung")], channels={"hung": blocking}, timeout=60)
        alerts.start()
        emit(change(Level.WARNING))
        wait_until(lambda: blocking.started)
        alerts.stop(drain=0.05)

        with alerts:
            emit(change(Level.WARNING))
            time.sleep(0.1)
            started_while_hung = blocking.started
            release.set()
            wait_until(lambda: channel_statistics(alerts, "hung").delivered)

        assert started_while_hung == 1
        assert blocking.max_inside == 1
        assert blocking.calls == ["open", "close"]

    def test_close_that_hangs_does_not_hold_up_the_end(
        self, recorder: Recording, release: threading.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        class NeverCloses(BlockingChannel):
            def close(self) -> None:
                release.wait()

        begun = time.monotonic()
        with Alerts([RULE], channels={"hung": NeverCloses(release), "people": recorder}):
            pass

        assert time.monotonic() - begun < 10
        assert recorder.calls == ["open", "close"]
        assert "The channel hung was not closed within 1 s" in caplog.text
        release.set()

    def test_channel_may_stop_alerts_by_itself(self, change: Change, wait_until: Wait, recorder: Recording) -> None:
        class Stopping(BlockingChannel):
            def send(self, alert: Alert, deadline: Deadline, /) -> None:
                self.started += 1
                alerts.stop()
                self.calls.append("stopped")

        stopping = Stopping(threading.Event())
        alerts = Alerts([AlertRule("warning", notify="hung")], channels={"hung": stopping})
        alerts.start()
        begun = time.monotonic()
        emit(change(Level.WARNING))
        wait_until(lambda: stopping.calls == ["open", "stopped", "close"])

        assert time.monotonic() - begun < 4
        assert not alerts.is_running


class TestHungNameResolution:
    def test_other_channels_deliver_and_the_name_is_tried_again(
        self,
        change: Change,
        wait_until: Wait,
        recorder: Recording,
        release: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked: list[str] = []

        def hang(host: str, *arguments: Any, **options: Any) -> list[Any]:  # Any: as the function that it replaces
            asked.append(host)
            if not release.wait(60):
                raise AssertionError("it was never released")
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        channels = {"hung": WebhookChannel("http://unknown.example/token"), "people": recorder}

        with Alerts([RULE], channels=channels, timeout=0.1, retry_first=0.01, drain=0.1) as alerts:
            emit(change(Level.WARNING))
            wait_until(lambda: recorder.alerts and channel_statistics(alerts, "hung").abandoned)
            time.sleep(0.1)
            asked_while_hung = len(asked)
            release.set()
            wait_until(lambda: channel_statistics(alerts, "hung").failures >= 2)

        assert asked_while_hung == 1
        assert channel_statistics(alerts, "hung").abandoned == 1
        assert channel_statistics(alerts, "people").delivered == 1

    def test_end_does_not_wait_for_the_resolver(
        self, change: Change, wait_until: Wait, release: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def hang(host: str, *arguments: Any, **options: Any) -> list[Any]:  # Any: as the function that it replaces
            asked.append(host)
            release.wait()
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        hook = WebhookChannel("http://unknown.example/token")
        alerts = Alerts([AlertRule("warning", notify="hook")], channels={"hook": hook})
        alerts.start()
        emit(change(Level.WARNING))
        wait_until(lambda: asked)
        begun = time.monotonic()

        alerts.stop(drain=0.05)

        assert time.monotonic() - begun < 5
        assert channel_statistics(alerts, "hook").left == 1
        release.set()


def test_deadline_shuts_down_what_was_registered() -> None:
    local, remote = socket.socketpair()
    with local, remote:

        class Client:
            sock = local

        deadline = Deadline(60)
        deadline.register(Client())
        threading.Timer(0.05, deadline.expire).start()

        assert local.recv(1) == b""
        assert deadline.left_s == 0
        with pytest.raises(TimeoutError):
            deadline.remaining_or_raise()
