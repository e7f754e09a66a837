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
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar
from weakref import ref

from memtools.errors import RecursiveFactory

K = TypeVar("K")


class Absence(Enum):
    """The answer "nothing there" where None may be a value."""

    MISSING = "missing"


MISSING: Final = Absence.MISSING
Missing: TypeAlias = Literal[Absence.MISSING]


# Who waits for whom, so that a circle of factories is an error and not a silence.
#
# Covers: threads and tasks that wait for a flight, over all caches of the process.
# Leaves to others: the waiting itself (`_flights`, `_tasks`).
#
# A flight is one run of a factory that several may wait for. Its runner is the thread or the task that runs the factory.
# A wait is refused when the runner itself waits, over any number of steps, for the one who asks. A task that the factory
# starts and waits for is another runner, which is not followed.

# A number and not the thing itself, and flights only weakly: a task whose loop was abandoned must not live on for us.
Runner: TypeAlias = tuple[str, int]


class Flight(Protocol):
    """One run of a factory."""

    runner: Runner | None


_lock = threading.RLock()  # a finaliser may ask a cache in the middle of this
_awaited: dict[Runner, ref[Flight]] = {}


def this_thread() -> Runner:
    """Return the running thread."""
    return "thread", threading.get_ident()


def this_task() -> Runner:
    """Return the running task."""
    return "task", id(asyncio.current_task())


@contextmanager
def waiting(waiter: Runner, flight: Flight, key: object) -> Generator[None, None, None]:
    """Note for the length of the block that `waiter` waits for `flight`, which makes the value of `key`.

    Raises:
        RecursiveFactory: if the flight cannot end before `waiter` goes on.
    """
    with _lock:
        _refuse_circle(waiter, flight, key)
        before = _awaited.get(waiter)
        _awaited[waiter] = ref(flight)
    try:
        yield
    finally:
        with _lock:
            _awaited.pop(waiter, None)
            if before is not None:  # we are in a finaliser, in the middle of another wait of the same thread
                _awaited[waiter] = before


def _refuse_circle(waiter: Runner, flight: Flight, key: object) -> None:
    step: Flight | None = flight
    while step is not None and step.runner is not None:
        if step.runner == waiter:
            raise RecursiveFactory.of(key)
        awaited = _awaited.get(step.runner)
        step = None if awaited is None else awaited()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()
    # The threads that waited are not in the child; a task that waits takes itself out, and does not mind.
    _awaited.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew)


# One run of a factory for all threads that miss the same key at the same time.
#
# Covers: waiting for another thread's run, handing out its value or its failure.
# Leaves to others: tasks (`_tasks`), where the value is kept
# (`_store`).

V = TypeVar("V")


class ThreadFlight(Generic[V]):
    """One run of a factory in the thread that made this object.

    Attributes:
        runner: that thread.
        is_awaited: whether another thread has joined; set while the cache is locked.
    """

    __slots__ = ("__weakref__", "_ended", "_error", "_trace", "_value", "is_awaited", "runner")

    def __init__(self) -> None:
        self.runner: Runner | None = this_thread()
        self.is_awaited = False
        self._ended = threading.Event()
        self._value: V | Missing = MISSING
        self._error: Exception | None = None
        self._trace: TracebackType | None = None

    def land(self, value: V) -> None:
        """Hand `value` to all who wait."""
        self._value = value
        self._ended.set()

    def fail(self, error: BaseException) -> None:
        """Hand `error` to all who wait; what was meant for one thread (`KeyboardInterrupt`) stays there."""
        # Not kept for nobody: the traceback may know this object, and the circle would keep the factory's frames.
        if self.is_awaited and isinstance(error, Exception):
            self._error, self._trace = error, error.__traceback__
        self._ended.set()

    def wait(self, key: object) -> V | Missing:
        """Wait for the end; return the value, or `MISSING` where the run was broken off and someone has to try again.

        Raises:
            RecursiveFactory: if this thread makes the value of `key` itself, or the run waits for this thread.
            Exception: what the factory raised.
        """
        with waiting(this_thread(), self, key):
            self._ended.wait()

        if self._error is None:
            return self._value
        try:
            # One exception is raised in many threads: each starts from the factory's traceback, or it would grow.
            raise self._error.with_traceback(self._trace)
        finally:
            # The traceback holds this frame, and through it this object and the exception: a circle.
            del self


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


# The runs of factories that somebody may still join: one table for the threads, one for each event loop.
#
# Leaves to others: running and waiting (`_flights`, `_tasks`).
#
# A run is never joined from another loop, nor by a thread from a task: a loop may stop for good at any moment, and those
# who wait elsewhere would never hear of it.
#
# Threads: the caller holds the cache's lock.


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
