"""Alerts begin and end without a trace, in threads, loops and forked children, with whatever is short."""

import asyncio
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import pytest

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


RULE = AlertRule("warning", notify="people", action=lambda alert: None)


def test_nothing_is_heard_before_the_start_and_after_the_end(change: Change, recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})
    emit(change(Level.WARNING))

    with alerts:
        assert alerts.is_running
        emit(change(Level.WARNING))
    emit(change(Level.NORMAL))

    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED]
    assert recorder.calls == ["open", "close"]
    assert not alerts.is_running


def test_starting_and_ending_twice_is_starting_and_ending_once(recorder: Recording) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})

    alerts.stop()
    alerts.start()
    alerts.start()
    alerts.stop()
    alerts.stop()

    assert recorder.calls == ["open", "close"]


def test_200_starts_and_ends_leave_no_thread_and_no_descriptor(change: Change, recorder: Recording) -> None:
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


async def test_200_asynchronous_starts_and_ends_leave_no_task_and_no_thread(
    change: Change, recorder: Recording
) -> None:
    alerts = Alerts([RULE], channels={"people": recorder})
    threads = threading.active_count()

    for _ in range(200):
        async with alerts:
            emit(change(Level.WARNING))

    assert threading.active_count() == threads
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(recorder.alerts) == 200


def test_a_channel_that_cannot_be_opened_stops_the_start_and_the_others_are_closed(
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


def test_what_waits_at_the_end_is_delivered(change: Change, recorder: Recording) -> None:
    recorder.failures = [OSError("not yet")] * 3

    with Alerts([RULE], channels={"people": recorder}, retry_first=0.01):
        emit(change(Level.WARNING))
        emit(change(Level.NORMAL))

    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED, AlertKind.RESOLVED]


def test_an_end_does_not_wait_for_what_cannot_be_tried_before_it(
    change: Change, recorder: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.failures = [OSError("away")]
    begun = time.monotonic()

    with Alerts([RULE], channels={"people": recorder}, retry_first=3600, retry_max=3600, drain=60) as alerts:
        emit(change(Level.WARNING))

    assert time.monotonic() - begun < 30
    assert alerts.statistics().channels[0].left == 1
    assert "Alerts stopped with 1 undelivered to people" in caplog.text


class Stubborn:
    """A channel that obeys no deadline."""

    def __init__(self, release: threading.Event) -> None:
        self.begun = threading.Event()
        self._release = release

    def open(self) -> None: ...

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        self.begun.set()
        self._release.wait()

    def close(self) -> None: ...


def test_an_end_waits_for_no_channel_longer_than_its_drain(
    change: Change, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    channel = Stubborn(release)
    alerts = Alerts([AlertRule("warning", notify="people")], channels={"people": channel})
    alerts.start()
    emit(change(Level.WARNING))
    channel.begun.wait(10)

    begun = time.monotonic()
    alerts.stop(drain=0.05)

    assert time.monotonic() - begun < 5
    assert "deliveries to people were running; their threads were abandoned (1)" in caplog.text
    release.set()


async def test_a_cancelled_end_still_ends_and_is_still_cancelled(change: Change, recorder: Recording) -> None:
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


def test_the_exception_of_the_service_goes_through(recorder: Recording) -> None:
    with pytest.raises(ZeroDivisionError), Alerts([RULE], channels={"people": recorder}):
        raise ZeroDivisionError


def test_where_no_thread_can_be_started_alerts_wait_until_one_can(
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


def test_an_end_without_ever_a_thread_says_what_was_left(
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
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of descriptors is set by Linux's rules")
def test_without_descriptors_alerts_are_tried_again_later(
    change: Change, wait_until: Wait, recorder: Recording
) -> None:
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
def test_a_forked_child_tells_its_own_alerts_and_none_of_its_parent(
    change: Change, recorder: Recording, wait_until: Wait
) -> None:
    with Alerts([RULE], channels={"people": recorder}, drain=20) as alerts:
        emit(change(Level.WARNING))
        wait_until(lambda: recorder.alerts)
        reading, writing = os.pipe()

        child = os.fork()
        if child == 0:
            told = "nothing"
            try:
                recorder.alerts.clear()
                emit(change(Level.NORMAL))  # the incident is the parent's
                emit(TaskAbandoned("scope", "task of the child", 1.0))
                alerts.stop()
                told = f"{[alert.kind.value for alert in recorder.alerts]} {recorder.alerts[0].incident}"
            finally:
                os.write(writing, told.encode())
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)

    assert told.startswith("['opened'] ")
    assert recorder.alerts[0].incident not in told
    assert [alert.kind for alert in recorder.alerts] == [AlertKind.OPENED]


# In an interpreter of its own: a tracer of lines, such as coverage's, takes locks that a fork copies as they are held.
FORKS = """
import os, threading, time
from memtools.alerts import AlertRule, Alerts
from memtools.events import TaskAbandoned, emit

class Silent:
    def open(self): pass
    def send(self, alert, deadline): pass
    def close(self): pass

def load():
    number = 0
    while not over.is_set():
        number += 1
        emit(TaskAbandoned("scope", f"task {number}", 1.0))

def end_of_a_child():
    child = os.fork()
    if child == 0:
        emit(TaskAbandoned("scope", "task of the child", 1.0))
        os._exit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1

over = threading.Event()
rule = AlertRule("warning", notify="people", action=lambda alert: None)
with Alerts([rule], channels={"people": Silent()}, queue_size=10):
    thread = threading.Thread(target=load)
    thread.start()
    ends = 0
    try:
        while ends < 100 and end_of_a_child() == 0:
            ends += 1
    finally:
        over.set()
        thread.join()
print(ends)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_100_forks_under_load_hang_nowhere() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120)

    assert done.stdout == "100\n", done.stderr


def test_a_program_that_never_stops_its_alerts_still_tells_and_is_told() -> None:
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


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_short_of_address_space_the_service_goes_on() -> None:
    program = (
        "import resource\n"
        "from memtools.alerts import AlertRule, Alerts\n"
        "from memtools.events import TaskAbandoned, emit\n"
        "alerts = Alerts([AlertRule('warning', notify='log', action=print)])\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), -1))\n"  # less than the stack of a thread
        "with alerts:\n"
        "    for number in range(100):\n"
        "        emit(TaskAbandoned('nightly', f'import {number}', 1.0))\n"
        "    print('served')\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "served\n"
    assert "No thread can be started" in done.stderr
    assert "Alerts stopped with 100 undelivered to log" in done.stderr


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
