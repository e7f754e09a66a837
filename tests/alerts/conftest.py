"""A channel that keeps what it is sent, facts to send, and a way to wait for a thread."""

import threading
import time
from collections.abc import Callable

import pytest

from memtools.alerts import Alert, AlertKind, Deadline
from memtools.events import LevelChanged
from memtools.readings import Level, Reading

MIB = 2**20
PATIENCE_S = 20.0


class Recorder:
    """A channel that keeps what it is sent."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.calls: list[str] = []
        self.failures: list[BaseException] = []

    def open(self) -> None:
        self.calls.append("open")

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.alerts.append(alert)

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def recorder() -> Recorder:
    """A channel that keeps what it is sent."""
    return Recorder()


@pytest.fixture
def make_recorder() -> Callable[[], Recorder]:
    """Make another channel that keeps what it is sent."""
    return Recorder


@pytest.fixture
def change() -> Callable[[Level], LevelChanged]:
    """Make the fact that the level has changed."""

    def make(after: Level) -> LevelChanged:
        return LevelChanged(Level.NORMAL, after, Reading(900 * MIB, 1024 * MIB, time.monotonic()), 800 * MIB)

    return make


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for what another thread does."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.002)

    return wait


@pytest.fixture
def alert() -> Alert:
    """An alert like many."""
    return Alert(
        AlertKind.OPENED, Level.CRITICAL, "memory", "", "memory is at 900.0 MiB", (("change", "normal to critical"),),
        0, 0, "a1b2-1", 1, "prices on host-1 (process 7)", 1_700_000_000.0,
    )  # fmt: skip


@pytest.fixture
def release() -> threading.Event:
    """What lets a blocked action or channel go on; set by the test."""
    return threading.Event()
