"""Asking a running service: by hand, by signal, in the middle of anything."""

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
from memtools.leaks import BackgroundInvestigation, Diagnosis, Investigator, Leak
from memtools.leaks._investigate import log_diagnosis

QUIET = Diagnosis(LeakVerdict(LeakKind.NONE, 0.0, 0.0, 15.0, "nothing grows"), ())
LEAKS = Diagnosis(
    LeakVerdict(LeakKind.PYTHON, 9.0, 0.0, 15.0, "it grows"), (Leak(LeakKind.PYTHON, 9.0, "dict", ("app.desk",)),)
)
PATIENCE_S = 20.0

needs_sigusr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")


class Desk:
    """Collects the answers, and gives them."""

    def __init__(self) -> None:
        self.told: list[Diagnosis] = []
        self.samples = 0
        self.has_answer = threading.Event()

    def look(self, *, seconds: float, wait: Callable[[float], object]) -> Diagnosis:
        self.samples += 1
        return LEAKS

    def tell(self, diagnosis: Diagnosis) -> None:
        self.told.append(diagnosis)
        self.has_answer.set()


def test_asking_returns_at_once_and_the_answer_is_told_in_a_thread() -> None:
    desk = Desk()

    with Investigator(tell=desk.tell, look=desk.look) as leaks:
        leaks.ask("critical", 0.97)
        assert desk.has_answer.wait(PATIENCE_S)

    assert desk.told == [LEAKS]


def test_who_asks_again_too_early_is_not_heard() -> None:
    now = 100.0
    desk = Desk()

    with Investigator(tell=desk.tell, look=desk.look, at_most_every_s=600, clock=lambda: now) as leaks:
        for _ in range(5):
            leaks.ask()
            _until_heard(leaks)
        assert desk.samples == 1

        now = 701.0
        desk.has_answer.clear()
        leaks.ask()
        assert desk.has_answer.wait(PATIENCE_S)

    assert desk.samples == 2


def _until_heard(leaks: Investigator) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not leaks._asked.empty() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)  # and looked, or not


@needs_sigusr1
def test_a_signal_asks_and_its_handler_comes_back_at_the_end() -> None:
    desk, heard = Desk(), list[int]()
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    ours = signal.getsignal(signal.SIGUSR1)
    try:
        with Investigator(tell=desk.tell, look=desk.look) as leaks:
            leaks.ask_on_signal(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert desk.has_answer.wait(PATIENCE_S)

        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is ours
    finally:
        signal.signal(signal.SIGUSR1, before)


@needs_sigusr1
def test_a_signal_in_the_middle_of_asking_harms_nothing() -> None:
    desk = Desk()
    before = signal.getsignal(signal.SIGUSR1)

    with Investigator(tell=desk.tell, look=desk.look, at_most_every_s=0) as leaks:
        leaks.ask_on_signal(signal.SIGUSR1)
        for _ in range(300):
            signal.raise_signal(signal.SIGUSR1)
            leaks.ask()
        assert desk.has_answer.wait(PATIENCE_S)

    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_end_does_not_wait_for_an_investigation_and_tells_no_half_answer() -> None:
    begun, desk = threading.Event(), Desk()

    def look(*, seconds: float, wait: Callable[[float], Any]) -> Diagnosis:
        begun.set()
        assert wait(seconds)
        return QUIET

    started = time.monotonic()
    with Investigator(seconds=3_600, tell=desk.tell, look=look) as leaks:
        leaks.ask()
        assert begun.wait(PATIENCE_S)

    assert time.monotonic() - started < PATIENCE_S
    assert desk.told == []


def test_whoever_fails_to_be_told_is_logged_and_the_next_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    def tell(diagnosis: Diagnosis) -> None:
        desk.tell(diagnosis)
        if len(desk.told) == 1:
            raise OSError("the pager is broken")

    with Investigator(tell=tell, look=desk.look, at_most_every_s=0) as leaks:
        for _ in range(2):
            desk.has_answer.clear()
            leaks.ask()
            assert desk.has_answer.wait(PATIENCE_S)

    assert "the pager is broken" in caplog.text
    assert len(desk.told) == 2


def test_a_leak_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="memtools.leaks"):
        log_diagnosis(LEAKS)
        log_diagnosis(QUIET)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "LEAK python +9 B/s | dict <- app.desk"),
        ("INFO", "no leak: nothing grows"),
    ]


@pytest.mark.parametrize("wrong", [{"seconds": 1}, {"at_most_every_s": -1}])
def test_times_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Investigator(**wrong)


def test_who_looks_on_beside_a_program_is_no_thread_of_its_and_ends() -> None:
    before = threading.enumerate()
    alongside = BackgroundInvestigation()

    alongside.start()
    during = threading.enumerate()
    diagnosis = alongside.finish()

    assert during == before
    assert not diagnosis.is_leak
    assert "too few" in str(diagnosis)
