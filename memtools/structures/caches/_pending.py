"""The runs of factories that somebody may still join: one table for the threads, one for each event loop.

Leaves to others: running and waiting (`_flights`, `_tasks`).

A run is never joined from another loop, nor by a thread from a task: a loop may stop for good at any moment, and those
who wait elsewhere would never hear of it.

Threads: the caller holds the cache's lock.
"""

import asyncio
from typing import Generic, TypeVar

from memtools.structures.caches._flights import ThreadFlight
from memtools.structures.caches._tasks import TaskFlight

K = TypeVar("K")
V = TypeVar("V")


class Pending(Generic[K, V]):
    """Who makes the value of which key now.

    Attributes:
        by_threads: the runs of plain factories.
    """

    __slots__ = ("_by_loops", "by_threads")

    def __init__(self) -> None:
        self.by_threads: dict[K, ThreadFlight[V]] = {}
        self._by_loops: dict[asyncio.AbstractEventLoop, dict[K, TaskFlight[V]]] = {}

    def __len__(self) -> int:
        return len(self.by_threads) + sum(map(len, self._by_loops.values()))

    def of_loop(self, loop: asyncio.AbstractEventLoop) -> dict[K, TaskFlight[V]]:
        """Return the table of `loop`; those of loops that have been closed, perhaps in mid-run, go."""
        table = self._by_loops.get(loop)
        if table is None:
            for other in [other for other in self._by_loops if other.is_closed()]:
                del self._by_loops[other]
            table = self._by_loops[loop] = {}
        return table

    def forget(self, key: K) -> None:
        """Let nobody join the runs for `key`, nor keep what they make: the key has just been removed."""
        self.by_threads.pop(key, None)
        for table in self._by_loops.values():
            table.pop(key, None)

    def forget_all(self) -> None:
        """Do the same for every key."""
        self.by_threads.clear()
        for table in self._by_loops.values():
            table.clear()
