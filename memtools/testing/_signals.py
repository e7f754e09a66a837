"""What may grow with each call, and how it is read.

Covers: bytes of the tested owner, allocated blocks, C memory, tasks, threads and descriptors.
Leaves to others: when they are read (`_hunt`), what is made of the figures (`memtools.analysis`).
"""

import sys
import threading
from collections.abc import Callable
from typing import Final

from memtools.ledger import Owner
from memtools.readings import descriptors, malloc_bytes
from memtools.records import record


@record
class Signal:
    """One thing that may grow.

    Attributes:
        name: what grows, in the plural.
        tolerance: growth per call that is none.
        enough: growth after which nothing more is called: a test must not eat the machine to prove its point.
        read: returns how much there is now.
    """

    name: str
    tolerance: float
    enough: int
    read: Callable[[], int]

    def with_tolerance(self, tolerance: float) -> "Signal":
        """Return the same with another tolerance."""
        return Signal(self.name, tolerance, self.enough, self.read)


# An exact meter sees nothing but the tested function. What is kept for each hundredth call is still a leak.
BYTES_TOLERANCE: Final = 4.0
# Of the whole process: others come and go. One object a call is a block a call.
_BLOCKS_TOLERANCE: Final = 0.5
# C libraries keep buffers for later; below this nothing could be told from fragments of blocks of 4 KiB.
_NATIVE_TOLERANCE: Final = 256.0
# One of them kept for each hundredth call is a leak.
_COUNT_TOLERANCE: Final = 0.005

ENOUGH_BYTES: Final = 32 << 20
_BYTES_A_BLOCK: Final = 32  # the least that an object takes
_ENOUGH_TASKS: Final = 1_000
_ENOUGH_THREADS: Final = 60
_ENOUGH_DESCRIPTORS: Final = 120  # many systems allow 1,024


def signals_of(owner: Owner, tolerance: float, enough_bytes: int = ENOUGH_BYTES) -> tuple[Signal, ...]:
    """Return what is watched while `owner` is charged, those first that tell the most.

    Args:
        owner: whose bytes are counted.
        tolerance: bytes per call that are no growth.
        enough_bytes: growth after which nothing more is called.
    """
    found = [
        Signal("bytes", tolerance, enough_bytes, _reader_of(owner)),
        Signal("blocks", _BLOCKS_TOLERANCE, enough_bytes // _BYTES_A_BLOCK, sys.getallocatedblocks),
        Signal("tasks", _COUNT_TOLERANCE, _ENOUGH_TASKS, lambda: len(task_names())),
        Signal("threads", _COUNT_TOLERANCE, _ENOUGH_THREADS, threading.active_count),
    ]
    if descriptors() is not None:
        found.append(Signal("descriptors", _COUNT_TOLERANCE, _ENOUGH_DESCRIPTORS, lambda: len(descriptors() or ())))
    if malloc_bytes() is not None:
        found.append(Signal("native bytes", _NATIVE_TOLERANCE, enough_bytes, lambda: malloc_bytes() or 0))
    return tuple(found)


def _reader_of(owner: Owner) -> Callable[[], int]:
    if owner.meter.name == "traced":
        return _Lesser(owner).read
    return lambda: owner.live_bytes


class _Lesser:
    """What grew for the owner and in the whole process, whichever is less.

    With the traced meter a collection gives what it frees back to nobody, and the owner seems to keep it; the process
    as a whole knows better, but takes its neighbours for the owner.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._before = self._look()
        self._grown = 0

    def read(self) -> int:
        now = self._look()
        self._grown += min(now[0] - self._before[0], now[1] - self._before[1])
        self._before = now
        return self._grown

    def _look(self) -> tuple[int, int]:
        import tracemalloc  # loaded by the meter that traces, not by whoever imports memtools

        return self._owner.live_bytes, tracemalloc.get_traced_memory()[0]


def task_names() -> list[str]:
    """Return the names of the tasks of the running loop that have not ended; empty without a loop."""
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if asyncio is None or loop is None:
        return []
    return [task.get_name() for task in asyncio.all_tasks(loop)]


def thread_names() -> list[str]:
    """Return the names of the threads that run."""
    return [thread.name for thread in threading.enumerate()]
