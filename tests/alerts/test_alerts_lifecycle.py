"""Start and stop of alerts in threads, loops and forked children, also without threads, memory or descriptors."""

import asyncio
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from memtools import _identity
from memtools.alerts import Alert, AlertKind, AlertRule, Alerts, Deadline, WebhookChannel
from memtools.events import LevelChanged, TaskAbandoned, emit
from memtools.readings import Level

Wait = Callable[[Callable[[], object]], None]
Change = Callable[[Level], LevelChanged]


class Recording(Protocol):
    alerts: list[Alert]
    calls: list[str]
    failures: list[BaseException]

    def open(self) -> None: ...
    def send(self, alert: Alert, deadline: Deadline, /) -> None: ...
    def close(self) -> None: ...


PROGRAMS = Path(__file__).parent / "programs"
RULE = AlertRule("warning", notify="people", action=lambda alert: None)


def test_events_before_start_and_after_stop_are_ignored(change: Change, recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})
    emit(change(Level.WARNING))

    with alerts:
        assert alerts.is_running
        emit(change(Level.WARNING))
    emit(change(Level.NORMAL))

    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED]
    assert recorder.calls == ["open", "close"]
    assert not alerts.is_running


def test_second_start_and_second_stop_do_nothing(recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})

    alerts.stop()
    alerts.start()
    alerts.start()
    alerts.stop()
    alerts.stop()

    assert recorder.calls == ["open", "close"]


def test_200_starts_and_stops_leave_no_thread_and_no_descriptor(change: Change, recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder, "hook": WebhookChannel("http://127.0.0.1:1/")})
    with alerts:
        pass
    threads, descriptors = threading.active_count(), _descriptors()

    for _ in range(200):
        with alerts:
            emit(change(Level.WARNING))

    assert threading.active_count() == threads
    assert _descriptors() == descriptors
    assert len(recorder.alerts) == 200


async def test_200_async_starts_and_stops_leave_no_task_and_no_thread(change: Change, recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})
    threads = threading.active_count()

    for _ in range(200):
        async with alerts:
            emit(change(Level.WARNING))

    assert threading.active_count() == threads
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(recorder.alerts) == 200


def test_channel_that_cannot_be_opened_fails_the_start(
    recorder: Recording, make_recorder: Callable[[], Recording]
) -> None:
    class Broken:
        def open(self) -> None:
            raise FileNotFoundError("no certificates here")

        def send(self, alert: Alert, deadline: Deadline, /) -> None:
            raise AssertionError("it was never opened")

        def close(self) -> None:
            raise AssertionError("it was never opened")

    alerts = Alerts([AlertRule("warning", notify=("good", "bad"))], channels={"good": recorder, "bad": Broken()})

    with pytest.raises(FileNotFoundError):
        alerts.start()

    assert recorder.calls == ["open", "close"]
    assert not alerts.is_running


def test_waiting_messages_are_delivered_at_the_end(change: Change, recorder: Recording) -> None:
    recorder.failures = [OSError("not yet")] * 3

    with Alerts([RULE], channels={"people": recorder}, retry_first=0.01):
        emit(change(Level.WARNING))
        emit(change(Level.NORMAL))

    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED, AlertKind.RESOLVED]


def test_stop_does_not_wait_for_a_retry_after_its_drain(
    change: Change, recorder: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.failures = [OSError("away")]
    begun = time.monotonic()

    with Alerts([RULE], channels={"people": recorder}, retry_first=3600, retry_max=3600, drain=60) as alerts:
        emit(change(Level.WARNING))

    assert time.monotonic() - begun < 30
    assert alerts.statistics().channels[0].left == 1
    assert "Alerts stopped with 1 undelivered to people" in caplog.text


class BlockingChannel:
    """A channel that ignores its deadline."""

    def __init__(self, release: threading.Event) -> None:
        self.begun = threading.Event()
        self._release = release

    def open(self) -> None: ...

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        self.begun.set()
        self._release.wait()

    def close(self) -> None: ...


def test_stop_waits_no_longer_than_its_drain(
    change: Change, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    channel = BlockingChannel(release)
    alerts = Alerts([AlertRule("warning", notify="people")], channels={"people": channel})
    alerts.start()
    emit(change(Level.WARNING))
    channel.begun.wait(10)

    begun = time.monotonic()
    alerts.stop(drain=0.05)

    assert time.monotonic() - begun < 5
    assert "deliveries to people were running; their threads were abandoned (1)" in caplog.text
    release.set()


async def test_cancelled_async_exit_still_stops(change: Change, recorder: Recording) -> None:
    recorder.failures = [OSError("away")] * 10**4
    left = asyncio.Event()

    async def serve() -> None:
        async with Alerts([RULE], channels={"people": recorder}, retry_first=0.01, retry_max=0.01, drain=600):
            emit(change(Level.WARNING))
            left.set()

    task = asyncio.create_task(serve())
    await left.wait()
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


def test_exception_of_the_block_passes(recorder: Recording) -> None:
    with pytest.raises(ZeroDivisionError), Alerts([RULE], channels={"people": recorder}):
        raise ZeroDivisionError


def test_alerts_wait_until_a_thread_can_be_started(
    change: Change, recorder: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        alerts = Alerts([RULE], channels={"people": recorder})
        alerts.start()
        emit(change(Level.WARNING))
    assert recorder.alerts == []

    emit(change(Level.NORMAL))
    alerts.stop()

    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED, AlertKind.RESOLVED]
    assert "No thread can be started" in caplog.text


def test_stop_without_any_thread_logs_what_was_left(
    change: Change, recorder: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Alerts([RULE], channels={"people": recorder}) as alerts:
        emit(change(Level.WARNING))

    assert alerts.statistics().channels[0].left == 1
    assert "Alerts stopped with 1 undelivered to people" in caplog.text


@contextmanager
def no_descriptors_left() -> Generator[None, None, None]:
    """Leave no file descriptor to this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of descriptors is set by Linux's rules")
def test_delivery_without_descriptors_is_tried_again(change: Change, wait_until: Wait, recorder: Recording) -> None:
    channels = {"hook": WebhookChannel("http://127.0.0.1:1/"), "people": recorder}

    with (
        Alerts(
            [AlertRule("warning", notify=("hook", "people"))], channels=channels, drain=0.05, retry_first=0.01
        ) as alerts,
        no_descriptors_left(),
    ):
        emit(change(Level.WARNING))
        wait_until(lambda: alerts.statistics().channels[0].failures >= 2 and recorder.alerts)

    assert alerts.statistics().channels[0].left == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_sends_its_own_alerts_only(change: Change, recorder: Recording, wait_until: Wait) -> None:
    with Alerts([RULE], channels={"people": recorder}, drain=20) as alerts:
        emit(change(Level.WARNING))
        wait_until(lambda: recorder.alerts)
        reading, writing = os.pipe()

        child = os.fork()
        if child == 0:
            report = "nothing"
            try:
                recorder.alerts.clear()
                emit(change(Level.NORMAL))  # the incident belongs to the parent
                emit(TaskAbandoned("scope", "task of the child", 1.0))
                alerts.stop()
                report = f"{[alert.kind.value for alert in recorder.alerts]} {recorder.alerts[0].incident}"
            finally:
                os.write(writing, report.encode())
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            report = pipe.read()
        os.waitpid(child, 0)

    assert report.startswith("['opened'] ")
    assert recorder.alerts[0].incident not in report
    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_100_forks_under_load_do_not_hang() -> None:
    # In an interpreter of its own: a tracer of lines, such as coverage's, takes locks that a fork copies as held.
    program = PROGRAMS / "fork_under_load.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)

    assert done.stdout == "100\n", done.stderr


def test_program_without_stop_delivers_and_is_warned() -> None:
    program = (
        "import logging, warnings\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from memtools.alerts import AlertRule, Alerts\n"
        "from memtools.events import TaskAbandoned, emit\n"
        "Alerts([AlertRule('warning', action='log_warning')]).start()\n"
        "emit(TaskAbandoned('nightly', 'import', 1.0))\n"
    )

    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert "task import of nightly still runs" in done.stderr
    assert "was never stopped" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("event", ["", "emit(TaskAbandoned('nightly', 'import', 1.0))"])
def test_forked_child_exits_without_a_warning(event: str) -> None:
    program = (
        "import logging, os, sys, warnings\n"
        "logging.basicConfig(format='%(message)s')\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "from memtools.alerts import AlertRule, Alerts\n"
        "from memtools.events import TaskAbandoned, emit\n"
        "with Alerts([AlertRule('warning', action='log_warning')]):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        f"    {event}\n"
        "    sys.exit(3)\n"
    )

    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert "ResourceWarning" not in done.stderr
    assert ("task import of nightly still runs" in done.stderr) is bool(event)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_copy_that_a_forked_child_leaves_is_no_warning() -> None:
    program = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "from memtools.alerts import AlertRule, Alerts\n"
        "Alerts([AlertRule('warning', action='log_warning')]).start()\n"
        "child = os.fork()\n"
        "if child:\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "sys.exit(3)\n"
    )

    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_service_goes_on_without_address_space() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "without_address_space.py"], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "served\n"
    assert "No thread can be started" in done.stderr
    assert "Alerts stopped with 100 undelivered to log" in done.stderr


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def test_service_starts_where_its_version_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: str) -> str:
        raise MemoryError

    monkeypatch.setattr(_identity, "version", no_memory)

    with Alerts([AlertRule("warning", notify="log")]):
        assert ("versions", f"memtools unknown, Python {platform.python_version()}") in _identity.identity()
