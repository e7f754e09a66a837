"""Scripted gauges: memory, limit, room and time as the test wants them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from memtools.cleanup import Reclaimer
from memtools.events import Event, subscribe
from memtools.monitor import MemoryMonitor, MemorySource
from memtools.readings import Headroom, Limit, LimitSource

MIB = 2**20


@dataclass
class Machine:
    """What the gauges show; a test turns the knobs."""

    used: int = 100 * MIB
    limit: int | None = 1000 * MIB
    room: int | None = 900 * MIB
    now: float = 1000.0
    queue: list[int] = field(default_factory=list)
    refuses: bool = False

    def read(self) -> int:
        if self.refuses:
            raise OSError(24, "Too many open files")
        return self.queue.pop(0) if self.queue else self.used

    def gauges(self) -> MemorySource:
        return MemorySource(
            used=self.read,
            limit=lambda: Limit(self.limit, LimitSource.USER),
            headroom=lambda: Headroom(self.room, LimitSource.USER, (), self.room),
            clock=lambda: self.now,
        )

    def set(self, monitor: MemoryMonitor, used_mib: float, after_s: float = 1.0) -> None:
        """Let time pass, use so much, and look."""
        self.now += after_s
        self.used = int(used_mib * MIB)
        monitor.check()

    def raise_to(self, monitor: MemoryMonitor, used_mib: float) -> None:
        """Use so much for two looks, which is what a level takes."""
        self.set(monitor, used_mib)
        self.set(monitor, used_mib)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make(machine: Machine) -> Callable[..., MemoryMonitor]:
    def make(*args: object, **options: object) -> MemoryMonitor:
        ladder = Reclaimer([], read=machine.read)  # nothing to give back, unless the test brings a ladder of its own
        options = {"gauges": machine.gauges(), "pressure": False, "cleanup_interval": 0, "ladder": ladder} | options
        return MemoryMonitor(*(args or ("60%", "80%")), **options)

    return make


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    events: list[Event] = []
    with subscribe(events.append):
        yield events
