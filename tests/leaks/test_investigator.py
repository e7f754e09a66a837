"""Requests for an investigation in a running service: by a call or a signal, at any moment."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from memtools.analysis import LeakKind, LeakVerdict
from memtools.errors import ConfigError
from memtools.leaks import Diagnosis, Investigator, Leak
from memtools.leaks._investigate import BackgroundInvestigation, log_diagnosis

QUIET = Diagnosis(LeakVerdict(LeakKind.NONE, 0.0, 0.0, 15.0, "nothing grows"), ())
LEAKS = Diagnosis(
    LeakVerdict(LeakKind.PYTHON, 9.0, 0.0, 15.0, "it grows"), (Leak(LeakKind.PYTHON, 9.0, "dict", ("app.orders",)),)
)
TIMEOUT_S = 20.0

needs_sigusr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")


class Recorder:
    """A scripted investigation that records its diagnoses."""

    def __init__(self) -> None:
        self.diagnoses: list[Diagnosis] = []
        self.runs = 0
        self.has_answer = threading.Event()

    def run(self, *, duration: float, wait: Callable[[float], object]) -> Diagnosis:
        self.runs += 1
        return LEAKS

    def record(self, diagnosis: Diagnosis) -> None:
        self.diagnoses.append(diagnosis)
        self.has_answer.set()


def test_request_returns_at_once_and_a_thread_reports() -> None:
    recorder = Recorder()

    with Investigator(on_diagnosis=recorder.record, run=recorder.run) as leaks:
        leaks.request("critical", 0.97)
        assert recorder.has_answer.wait(TIMEOUT_S)

    assert recorder.diagnoses == [LEAKS]


def test_request_within_the_interval_is_ignored() -> None:
    now = 100.0
    recorder = Recorder()

    with Investigator(on_diagnosis=recorder.record, run=recorder.run, min_interval=600, clock=lambda: now) as leaks:
        for _ in range(5):
            leaks.request()
            _until_handled(leaks)
        assert recorder.runs == 1

        now = 701.0
        recorder.has_answer.clear()
        leaks.request()
        assert recorder.has_answer.wait(TIMEOUT_S)

    assert recorder.runs == 2


def _until_handled(leaks: Investigator) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not leaks._requests.empty() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)  # the request is out of the queue, and soon run or ignored


@needs_sigusr1
def test_signal_requests_and_its_handler_is_restored() -> None:
    recorder, received = Recorder(), list[int]()
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    own = signal.getsignal(signal.SIGUSR1)
    try:
        with Investigator(on_diagnosis=recorder.record, run=recorder.run) as leaks:
            leaks.request_on_signal(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert recorder.has_answer.wait(TIMEOUT_S)

        assert received == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


@needs_sigusr1
def test_signal_in_the_middle_of_a_request_is_harmless() -> None:
    recorder = Recorder()
    before = signal.getsignal(signal.SIGUSR1)

    with Investigator(on_diagnosis=recorder.record, run=recorder.run, min_interval=0) as leaks:
        leaks.request_on_signal(signal.SIGUSR1)
        for _ in range(300):
            signal.raise_signal(signal.SIGUSR1)
            leaks.request()
        assert recorder.has_answer.wait(TIMEOUT_S)

    assert signal.getsignal(signal.SIGUSR1) == before


def test_exit_ends_an_investigation_without_a_report() -> None:
    begun, recorder = threading.Event(), Recorder()

    def run(*, duration: float, wait: Callable[[float], Any]) -> Diagnosis:
        begun.set()
        assert wait(duration)
        return QUIET

    started = time.monotonic()
    with Investigator(duration=3_600, on_diagnosis=recorder.record, run=run) as leaks:
        leaks.request()
        assert begun.wait(TIMEOUT_S)

    assert time.monotonic() - started < TIMEOUT_S
    assert recorder.diagnoses == []


def test_failing_callback_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    def fail_once(diagnosis: Diagnosis) -> None:
        recorder.record(diagnosis)
        if len(recorder.diagnoses) == 1:
            raise OSError("the pager is broken")

    with Investigator(on_diagnosis=fail_once, run=recorder.run, min_interval=0) as leaks:
        for _ in range(2):
            recorder.has_answer.clear()
            leaks.request()
            assert recorder.has_answer.wait(TIMEOUT_S)

    assert "the pager is broken" in caplog.text
    assert len(recorder.diagnoses) == 2


def test_leak_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="memtools.leaks"):
        log_diagnosis(LEAKS)
        log_diagnosis(QUIET)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "LEAK python +9 B/s | dict <- app.orders"),
        ("INFO", "no leak seen in 15 s: nothing grows"),
    ]


@pytest.mark.parametrize("wrong", [{"duration": 1}, {"min_interval": -1}])
def test_invalid_times_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Investigator(**wrong)


def test_background_thread_is_unknown_to_threading_and_ends() -> None:
    before = threading.enumerate()
    background = BackgroundInvestigation()

    background.start()
    during = threading.enumerate()
    diagnosis = background.finish()

    assert during == before
    assert not diagnosis.is_leak
    assert "too few" in str(diagnosis)
