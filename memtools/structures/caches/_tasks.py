"""One run of an async factory for all tasks of a loop that miss the same key at the same time.

Covers: the task that runs the factory, those who wait for it, cancellation of either.
Leaves to others: threads (`_flights`), where the value is kept
(`_store`).

The factory runs in a task of its own, in a copy of the context of the one who came first. So nobody who waits, not even
the first, takes the run along when cancelled. When the last one is cancelled nobody wants the value: the run is
cancelled, and the last one waits for its end, as it would have with a plain `await`.

Everything here happens in the thread of one loop.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from memtools.structures.caches._waits import Runner, this_task, waiting

V = TypeVar("V")


class TaskFlight(Generic[V]):
    """One run of an async factory, in a task of the running loop.

    Attributes:
        runner: the task, while it runs.
    """

    __slots__ = ("__weakref__", "_loop", "_on_end", "_task", "_waiters", "runner")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[["TaskFlight[V]"], None]) -> None:
        self.runner: Runner | None = None
        self._loop = loop
        self._on_end = on_end  # nobody may join any more
        self._task: asyncio.Task[V] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def start(self, make: Callable[[], Coroutine[Any, Any, V]]) -> None:
        """Begin the run."""
        run = self._run(make)
        try:
            task = self._loop.create_task(run, name="WeakCache factory")
        except BaseException:
            run.close()
            raise
        self._task = task
        task.add_done_callback(self._land)

    async def join(self, key: object) -> V:
        """Wait for the end and return the value.

        Raises:
            RecursiveFactory: if this task makes the value of `key` itself, or the run waits for this task.
            BaseException: what the factory raised.
        """
        try:
            with waiting(this_task(), self, key):
                await self._wait()
            assert self._task is not None
            return self._task.result()
        finally:
            self._leave()

    async def _run(self, make: Callable[[], Coroutine[Any, Any, V]]) -> V:
        self.runner = this_task()
        return await make()

    async def _wait(self) -> None:
        if self._task is not None and self._task.done():
            return
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._waiters.discard(waiter)
            if not self._waiters:
                await self._abandon()
            raise
        finally:
            self._waiters.discard(waiter)

    async def _abandon(self) -> None:
        # Whoever comes now starts a run of his own, this one is doomed.
        self._on_end(self)
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise error

    def _land(self, task: asyncio.Task[V]) -> None:
        self.runner = None
        self._on_end(self)
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not call it "never retrieved" when all waiters were cancelled
        for waiter in self._waiters:
            # The waiter only wakes up and looks at the task: a future with an exception would be one more to retrieve.
            if not waiter.done():
                waiter.set_result(None)
        self._leave()

    def _leave(self) -> None:
        # The last one out breaks the circle: flight, task, exception, traceback, frames, flight.
        if not self._waiters and self._task is not None and self._task.done():
            self._on_end(self)
            self._task = None
