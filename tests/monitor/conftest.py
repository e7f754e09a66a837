"""A scripted memory source: memory, limit, headroom and time as the test sets them."""

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
    """What the memory source returns; a test sets the fields."""

    used: int = 100 * MIB
    limit: int | None = 1000 * MIB
    headroom: int | None = 900 * MIB
    now: float = 1000.0
    queue: list[int] = field(default_factory=list)
    refuses: bool = False

    def read(self) -> int:
        if self.refuses:
            raise OSError(24, "Too many open files")
        return self.queue.pop(0) if self.queue else self.used

    def source(self) -> MemorySource:
        return MemorySource(
            used=self.read,
            limit=lambda: Limit(self.limit, LimitSource.USER),
            headroom=lambda: Headroom(self.headroom, LimitSource.USER, (), self.headroom),
            clock=lambda: self.now,
        )

    def set(self, monitor: MemoryMonitor, used_mib: float, after_s: float = 1.0) -> None:
        """Let time pass, set the use, and sample."""
        self.now += after_s
        self.used = int(used_mib * MIB)
        monitor.check()

    def raise_to(self, monitor: MemoryMonitor, used_mib: float) -> None:
        """Set the use for two samples, which is what a level takes."""
        self.set(monitor, used_mib)
        self.set(monitor, used_mib)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make(machine: Machine) -> Callable[..., MemoryMonitor]:
    def make(*args: object, **options: object) -> MemoryMonitor:
        reclaimer = Reclaimer([], read=machine.read)  # it has no step, unless the test passes another one
        options = {
            "source": machine.source(),
            "pressure": False,
            "cleanup_interval": 0,
            "min_flow": 0,
            "reclaimer": reclaimer,
        } | options
        return MemoryMonitor(*(args or ("60%", "80%")), **options)

    return make


@pytest.fixture
def events() -> Iterator[list[Event]]:
    received: list[Event] = []
    with subscribe(received.append):
        yield received
