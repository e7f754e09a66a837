"""`thread_pool_scope`: a thread pool that ends with its block, and whose tasks are charged to their submitters."""

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from memtools._records import as_dict, record
from memtools._suggestions import suggest_arguments
from memtools._threads import disregard_thread
from memtools.errors import ConfigError, ScopeClosed
from memtools.events import TaskAbandoned, emit
from memtools.ledger import bind_to_current
from memtools.pools._in_flight import InFlight, Place, label_of
from memtools.pools._pool_scope import SHUT_DOWN, PoolScope, parse_max_pending, parse_max_workers
from memtools.scopes._memory_scope import parse_name
from memtools.units import parse_seconds

T = TypeVar("T")

_ENDED_EARLY: Final = "it was ended early, by an exception or a cancellation"
_MAX_DEFAULT_WORKERS: Final = 32

_log = logging.getLogger("memtools.pools")


class BlockingAdmission(Protocol):
    """Makes a thread wait until there is memory for its task: a `MemoryMonitor` does."""

    def admit(self) -> AbstractContextManager[object]:
        """Return the context that a task runs in: entering it waits."""
        ...


@record
class ThreadPoolStatistics:
    """How many tasks of one thread pool run, wait and have ended, at one moment.

    Attributes:
        name: the pool's name.
        state: `"open"`, `"shutting down"` or `"ended"`.
        max_workers: how many tasks may run at once.
        threads: its threads; they are started when tasks come.
        running: tasks that have started and have not ended, those that wait for their admission included.
        waiting: tasks that have not started.
        finished: tasks that returned.
        failed: tasks that raised.
        cancelled: tasks that were cancelled before they started.
        abandoned: tasks that were still running `grace` seconds after the pool was left by an exception.
    """

    name: str
    state: str
    max_workers: int
    threads: int
    running: int
    waiting: int
    finished: int
    failed: int
    cancelled: int
    abandoned: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.state}): {self.running} running and {self.waiting} waiting in {self.threads} of "
            f"{self.max_workers} threads; {self.finished} finished, {self.failed} failed, {self.cancelled} cancelled"
        )


class _Calls:
    """What the threads of one pool execute. It has no reference to the pool, so that the pool can be collected."""

    def __init__(self, name: str, admission: BlockingAdmission | None) -> None:
        self.name = name
        self.running: dict[int, str] = {}  # the label of the task that each thread runs
        self.is_ended_early = False
        self._admission = admission

    def call(self, function: Callable[[], T], label: str, place: Place) -> T:
        thread = threading.get_ident()
        self.running[thread] = label
        outcome = "failed"
        try:
            with self._admitted():
                result = function()
            outcome = "finished"
            return result
        finally:
            self.running.pop(thread, None)
            place.end(outcome)

    @contextmanager
    def _admitted(self) -> Generator[None]:
        with nullcontext() if self._admission is None else self._admission.admit():
            if self.is_ended_early:
                raise ScopeClosed(self.name, _ENDED_EARLY)
            yield


class thread_pool_scope(PoolScope, ThreadPoolExecutor):  # noqa: N801  # a context manager that reads like a word
    """Run calls in threads that end with the block.

    ```python
    import asyncio

    async def main() -> None:
        async with thread_pool_scope(4, name="resize") as pool:
            assert await pool.run(sum, [1, 2, 3]) == 6
            assert list(pool.map(abs, [-1, 2])) == [1, 2]

    asyncio.run(main())
    ```

    It is a `concurrent.futures.ThreadPoolExecutor`, also for `loop.run_in_executor` and `loop.set_default_executor`.
    Each task runs in a copy of the context in which it was submitted, and is charged to the owner that is active there.

    The end of the block waits for all tasks; with `async with`, a thread waits, and the event loop goes on. Left by an
    exception or a cancellation, tasks that have not started are cancelled, and running ones have `grace` seconds: a
    thread cannot be stopped from outside. What still runs then is named (`TaskAbandoned` and a warning) and abandoned;
    the interpreter waits for it at its own end.

    Args:
        max_workers: how many tasks may run at once; by default as many as in a `ThreadPoolExecutor`.
        max_pending: how many more tasks may be in the pool. One more raises `ScopeFull` in `submit`, and waits in `run`
            and `map`.
        admit: an object with `admit()` that returns a context manager, such as a `MemoryMonitor`: a task waits in its
            thread to enter it.
        grace: seconds that running tasks have to end when the pool is left by an exception or a cancellation.
        name: the name in reports, and the beginning of the threads' names.

    Raises:
        ConfigError: for an invalid argument.

    Threads: any thread may use a pool. Fork: a child that was forked has to make a pool of its own.
    """

    @suggest_arguments(limit="max_workers", max_running="max_workers", thread_name_prefix="name")
    def __init__(
        self,
        max_workers: int | None = None,
        *,
        max_pending: int | None = None,
        admit: BlockingAdmission | None = None,
        grace: float = 5.0,
        name: str | None = None,
    ) -> None:
        workers = parse_max_workers(max_workers, min(_MAX_DEFAULT_WORKERS, (os.cpu_count() or 1) + 4))
        pending = parse_max_pending(max_pending)
        if admit is not None and (isinstance(admit, type) or not callable(getattr(admit, "admit", None))):
            raise ConfigError("admit", admit, "an object with an admit() method, such as a MemoryMonitor")
        self._grace_s = parse_seconds(grace, name="grace")
        self._name = "thread_pool_scope" if name is None else parse_name(name)
        # The threads work for no owner of their own; each task sets the one that it is charged to.
        ThreadPoolExecutor.__init__(
            self, max_workers=workers, thread_name_prefix=self._name, initializer=disregard_thread
        )
        self._workers = workers
        self._in_flight = InFlight(self._name, workers, pending)
        self._calls = _Calls(self._name, admit)
        self._pid = os.getpid()
        self._end_at: float | None = None
        self._abandoned = 0

    def statistics(self) -> ThreadPoolStatistics:
        """Return how many tasks run, wait and have ended so far."""
        counts, running = self._in_flight, len(self._calls.running)
        threads = sum(thread.is_alive() for thread in tuple(self._threads))
        state = "open" if not self._closed_reason else "shutting down" if threads else "ended"
        return ThreadPoolStatistics(
            name=self._name,
            state=state,
            max_workers=self._workers,
            threads=threads,
            running=running,
            waiting=max(0, counts.unfinished - running),
            finished=counts.finished,
            failed=counts.failed,
            cancelled=counts.cancelled,
            abandoned=self._abandoned,
        )

    def __repr__(self) -> str:
        found = self.statistics()
        return f"<thread_pool_scope {self._name!r} {found.state} running={found.running} waiting={found.waiting}>"

    def _has_started(self) -> bool:
        return bool(self._threads)

    def _start_call(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], place: Place
    ) -> "Future[T]":
        label = label_of(fn)
        function = partial(bind_to_current(fn), *args, **kwargs)
        context = contextvars.copy_context()
        try:
            # In an empty context, so that a thread that is started for it inherits none, where threads do (3.14).
            submit = partial(ThreadPoolExecutor.submit, self)
            future: Future[T] = contextvars.Context().run(submit, context.run, self._calls.call, function, label, place)
        except RuntimeError:
            if not self._closed_reason:
                raise  # no thread can be started, or the interpreter ends
            raise ScopeClosed(self._name, self._closed_reason) from None
        return future

    def _close(self, *, cancel_futures: bool) -> None:
        self._closed_reason = self._closed_reason or SHUT_DOWN
        self._in_flight.close(SHUT_DOWN)
        if self._pid == os.getpid():  # the locks of a forked child are in the state of that moment
            ThreadPoolExecutor.shutdown(self, wait=False, cancel_futures=cancel_futures)

    def _abort(self) -> None:
        if self._end_at is None:
            self._end_at = time.monotonic() + self._grace_s
        self._calls.is_ended_early = True
        self._close(cancel_futures=True)

    def _wait_ended(self) -> None:
        if self._pid != os.getpid():
            return  # a forked child has none of the threads
        for thread in tuple(self._threads):
            while thread is not threading.current_thread() and thread.is_alive():
                if self._end_at is not None and time.monotonic() >= self._end_at:
                    self._abandon()
                    return
                # In steps, since `_abort` in another thread may set the end meanwhile.
                thread.join(0.05 if self._end_at is None else min(0.05, max(0.0, self._end_at - time.monotonic())))

    def _abandon(self) -> None:
        names = list(self._calls.running.copy().values())
        if not names or self._abandoned:
            return
        self._abandoned = len(names)
        for name in names:
            emit(TaskAbandoned(self._name, name, self._grace_s))
        _log.warning(
            "%s abandons %d of its tasks, which are still running %.1f s after it was left: %s; a thread cannot be "
            "stopped: give the calls in it a time limit",
            self._name, len(names), self._grace_s, ", ".join(names[:5]),
        )  # fmt: skip
