"""Single-flight calls: one run of a factory for all that miss a key at once.

A plain function runs in the thread that came first, and the other threads wait for it. A coroutine function runs in a
task of its own, and the tasks of that event loop wait for it. Waits that can never end are refused, over all caches of
the process.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, MutableMapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar
from weakref import ref

from memtools._forks import register_after_fork
from memtools.errors import RecursiveFactory

K = TypeVar("K")
V = TypeVar("V")
C = TypeVar("C")


class _Missing(Enum):
    """The type of a sentinel that type checkers can narrow by."""

    MISSING = "missing"


MISSING: Final = _Missing.MISSING  # "no value", where None may be a value
Missing: TypeAlias = Literal[_Missing.MISSING]

# The thread or task that runs a factory. A number and not the task itself, because a task whose event loop was
# abandoned must not be kept alive here.
Runner: TypeAlias = tuple[str, int]


class Call(Protocol):
    """One run of a factory that several threads or tasks may wait for.

    Attributes:
        runner: the thread or task that runs the factory; None before and after the run.
    """

    runner: Runner | None


class ThreadCall(Generic[V]):
    """One run of a factory, in the thread that makes this object.

    Attributes:
        runner: that thread.
        has_waiters: whether another thread waits; set while the cache is locked.
    """

    __slots__ = ("__weakref__", "_ended", "_error", "_traceback", "_value", "has_waiters", "runner")

    def __init__(self) -> None:
        self.runner: Runner | None = current_thread()
        self.has_waiters = False
        self._ended = threading.Event()
        self._value: V | Missing = MISSING
        self._error: Exception | None = None
        self._traceback: TracebackType | None = None

    def set_result(self, value: V) -> None:
        """Return `value` from every `wait`."""
        self._value = value
        self._ended.set()

    def set_exception(self, error: BaseException) -> None:
        """Raise `error` from every `wait`; what was meant for one thread (`KeyboardInterrupt`) is not passed on."""
        # Kept only if a thread waits: the traceback may refer to this object, and the cycle would keep the frames of
        # the factory alive.
        if self.has_waiters and isinstance(error, Exception):
            self._error, self._traceback = error, error.__traceback__
        self._ended.set()

    def wait(self, key: object) -> V | Missing:
        """Wait for the end of the run and return the value; `MISSING` if it was interrupted and has to be repeated.

        Raises:
            RecursiveFactory: if this thread makes the value of `key` itself, or the run waits for this thread.
            Exception: what the factory raised.
        """
        with record_wait(current_thread(), self, key):
            self._ended.wait()

        if self._error is None:
            return self._value
        try:
            # Several threads raise the same exception: each starts from the traceback of the factory, or it would grow.
            raise self._error.with_traceback(self._traceback)
        finally:
            # The traceback holds this frame, and through it this object and the exception: a reference cycle.
            del self


class TaskCall(Generic[V]):
    """One run of an async factory, in a task of its own on the running event loop.

    No waiting task takes the run along when it is cancelled, not even the task that came first. When the last waiting
    task is cancelled, the run is cancelled as well, and that task waits for the end of the run, as it would with a
    plain `await`.

    All methods are called in the thread of the event loop.

    Args:
        loop: the running event loop.
        on_end: called with this object when no further task may wait for it; may be called more than once.

    Attributes:
        runner: the task, while it runs.
    """

    __slots__ = ("__weakref__", "_loop", "_on_end", "_task", "_waiters", "runner")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[["TaskCall[V]"], None]) -> None:
        self.runner: Runner | None = None
        self._loop = loop
        self._on_end = on_end
        self._task: asyncio.Task[V] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def start(self, create: Callable[[], Coroutine[Any, Any, V]], *, name: str) -> None:
        """Start the task, of this name, in a copy of the current context."""
        coroutine = self._run(create)
        try:
            task = self._loop.create_task(coroutine, name=name)
        except BaseException:
            coroutine.close()
            raise
        self._task = task
        task.add_done_callback(self._on_task_done)

    async def wait(self, key: object) -> V:
        """Wait for the end of the run and return the value.

        Raises:
            RecursiveFactory: if this task makes the value of `key` itself, or the run waits for this task.
            BaseException: what the factory raised.
        """
        try:
            with record_wait(current_task(), self, key):
                await self._wait_for_task()
            assert self._task is not None
            return self._task.result()
        finally:
            self._release_task()

    async def _run(self, create: Callable[[], Coroutine[Any, Any, V]]) -> V:
        self.runner = current_task()
        return await create()

    async def _wait_for_task(self) -> None:
        if self._task is not None and self._task.done():
            return
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._waiters.discard(waiter)
            if not self._waiters:
                await self._cancel_task()
            raise
        finally:
            self._waiters.discard(waiter)

    async def _cancel_task(self) -> None:
        # A task that misses the key from now on starts a run of its own.
        self._on_end(self)
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise error

    def _on_task_done(self, task: asyncio.Task[V]) -> None:
        self.runner = None
        self._on_end(self)
        if not task.cancelled():
            task.exception()  # or asyncio logs "exception was never retrieved" when all waiting tasks were cancelled
        for waiter in self._waiters:
            # The future only wakes the waiting task: with an exception it would be one more to retrieve.
            if not waiter.done():
                waiter.set_result(None)
        self._release_task()

    def _release_task(self) -> None:
        # The last waiting task breaks the cycle of call, task, exception, traceback, frames and call.
        if not self._waiters and self._task is not None and self._task.done():
            self._on_end(self)
            self._task = None


class CallsInProgress(Generic[K, V]):
    """The calls of one cache that run now, by key: one table for the threads and one for each event loop.

    Neither a thread nor a task of another loop waits for the task of a loop: a loop may stop for good at any moment,
    and such a wait would never end.

    Threads: `join_in_loop` and `discard` take the lock; the caller of each other method holds it.

    Args:
        lock: the lock of the cache, which is re-entrant; the cache passes a new one after a fork.

    Attributes:
        in_threads: the calls of plain factories.
    """

    __slots__ = ("_in_loops", "_lock", "in_threads")

    def __init__(self, lock: threading.RLock) -> None:
        self.renew_after_fork(lock)

    def __len__(self) -> int:
        return len(self.in_threads) + sum(map(len, self._in_loops.values()))

    def join_in_loop(
        self, key: K, create: Callable[[dict[K, TaskCall[V]], TaskCall[V]], Coroutine[Any, Any, V]], *, name: str
    ) -> TaskCall[V]:
        """Return the call for `key` of the running event loop, which is started where there is none.

        Args:
            key: the key.
            create: called with the table of the loop and the new call; returns the coroutine that makes the value. The
                call is in the table until it ends or its key is forgotten.
            name: the name of a new task.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            table = self._table_of(loop)
            running = table.get(key)
            if running is not None:
                return running
            call: TaskCall[V] = TaskCall(loop, partial(self.discard, key, table))
            table[key] = call

        try:
            call.start(partial(create, table, call), name=name)
        except BaseException:
            self.discard(key, table, call)
            raise
        return call

    def discard(self, key: K, table: MutableMapping[K, C], call: C) -> None:
        """Take a call that has ended out of its table, where it has not been forgotten before."""
        with self._lock:
            if table.get(key) is call:
                del table[key]

    def forget(self, key: K) -> None:
        """Forget the calls for `key`, which was just removed: no further waiters, and their values are not stored."""
        self.in_threads.pop(key, None)
        for table in self._in_loops.values():
            table.pop(key, None)

    def forget_all(self) -> None:
        """Forget the calls for all keys."""
        self.in_threads.clear()
        for table in self._in_loops.values():
            table.clear()

    def renew_after_fork(self, lock: threading.RLock) -> None:
        """Use `lock` from now on, and forget all calls; their tables stay with those that run in this process."""
        self._lock = lock
        self.in_threads: dict[K, ThreadCall[V]] = {}
        self._in_loops: dict[asyncio.AbstractEventLoop, dict[K, TaskCall[V]]] = {}

    def _table_of(self, loop: asyncio.AbstractEventLoop) -> dict[K, TaskCall[V]]:
        """Return the table of `loop`; when it is new, the tables of closed loops are removed."""
        table = self._in_loops.get(loop)
        if table is None:
            for other in [other for other in self._in_loops if other.is_closed()]:
                del self._in_loops[other]
            table = self._in_loops[loop] = {}
        return table


_lock = threading.RLock()  # re-entrant: a finaliser may use a cache while this thread holds it
_awaited: dict[Runner, ref[Call]] = {}


def current_thread() -> Runner:
    """Return the running thread."""
    return "thread", threading.get_ident()


def current_task() -> Runner:
    """Return the running task."""
    return "task", id(asyncio.current_task())


@contextmanager
def record_wait(waiter: Runner, call: Call, key: object) -> Generator[None, None, None]:
    """Record, for the length of the block, that `waiter` waits for `call`, which makes the value of `key`.

    Raises:
        RecursiveFactory: if the call cannot end before `waiter` goes on.
    """
    with _lock:
        _raise_on_deadlock(waiter, call, key)
        outer = _awaited.get(waiter)
        _awaited[waiter] = ref(call)
    try:
        yield
    finally:
        with _lock:
            _awaited.pop(waiter, None)
            if outer is not None:  # this block ran in a finaliser, during another wait of the same thread
                _awaited[waiter] = outer


def _raise_on_deadlock(waiter: Runner, call: Call, key: object) -> None:
    # Follow who waits for which runner. A task that a factory starts and awaits is another runner, and is not followed.
    step: Call | None = call
    while step is not None and step.runner is not None:
        if step.runner == waiter:
            raise RecursiveFactory.of(key)
        awaited = _awaited.get(step.runner)
        step = None if awaited is None else awaited()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()
    # The threads that waited do not exist in the child; a task that waits removes its own entry, present or not.
    _awaited.clear()


register_after_fork(_renew_lock)
