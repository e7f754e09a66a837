"""A channel that records alerts, an event to emit, and a function that waits for a thread."""

import threading
import time
from collections.abc import Callable

import pytest

from memtools.alerts import Alert, AlertKind, Deadline
from memtools.events import LevelChanged
from memtools.readings import Level, Reading

MIB = 2**20
TIMEOUT_S = 20.0


class Recorder:
    """A channel that records what it is sent."""

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
    """A channel that records what it is sent."""
    return Recorder()


@pytest.fixture
def make_recorder() -> Callable[[], Recorder]:
    """Make another channel that records what it is sent."""
    return Recorder


@pytest.fixture
def change() -> Callable[[Level], LevelChanged]:
    """Make the event of a changed level."""

    def make(after: Level) -> LevelChanged:
        return LevelChanged(Level.NORMAL, after, Reading(900 * MIB, 1024 * MIB, time.monotonic()), 800 * MIB)

    return make


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds that another thread brings about."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.002)

    return wait


@pytest.fixture
def alert() -> Alert:
    """A typical alert."""
    return Alert(
        AlertKind.OPENED, Level.CRITICAL, "memory", "", "memory is at 900.0 MiB", (("change", "normal to critical"),),
        0, 0, "a1b2-1", 1, "prices on host-1 (process 7)", 1_700_000_000.0,
    )  # fmt: skip


@pytest.fixture
def release() -> threading.Event:
    """The event that a blocked action or channel waits for; the test sets it."""
    return threading.Event()
