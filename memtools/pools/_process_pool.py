"""`process_pool_scope`: a process pool that survives its workers, and replaces those that have grown."""

import contextvars
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Literal, TypeVar

from memtools._records import as_dict, record
from memtools._suggestions import suggest_arguments
from memtools.cleanup._registry import register_recyclable, unregister_recyclable
from memtools.errors import ConfigError
from memtools.pools._in_flight import InFlight, Place, label_of
from memtools.pools._manager import ENDED, Manager, ProcessPoolSettings
from memtools.pools._pool_scope import (
    SHUT_DOWN,
    PoolScope,
    call_each,
    parse_max_pending,
    parse_max_workers,
    parse_positive_seconds,
)
from memtools.pools._worker import Task, Worker
from memtools.scopes._memory_scope import parse_name
from memtools.units import format_size, parse_choice, parse_count, parse_seconds, parse_size

T = TypeVar("T")

StartMethod = Literal["spawn", "forkserver", "fork"]

_START_METHODS: Final = ("spawn", "forkserver", "fork")


@record
class WorkerStatistics:
    """One worker process at one moment.

    Attributes:
        pid: its process id.
        state: `"starting"`, `"idle"`, `"running"` or `"ending"`.
        task: the name of the function that it runs; None while it runs none.
        tasks: how many tasks it has done.
        age_s: seconds since it was started.
        growth_bytes: how much its anonymous memory has grown since the end of its first task: what `recycle_above` is
            compared with.
        pss_bytes: its proportional set size: of a page that it shares, only its part; None where it is not known.
        private_bytes: the memory that only it has; None where it is not known.
        retire_reason: why it is about to be replaced; empty where it is not.
    """

    pid: int
    state: str
    task: str | None
    tasks: int
    age_s: float
    growth_bytes: int
    pss_bytes: int | None
    private_bytes: int | None
    retire_reason: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


@record
class ProcessPoolStatistics:
    """How many tasks of one process pool run, wait and have ended, and the memory of its workers, at one moment.

    The memory is read by the pool's thread, at most once a second, while tasks run and when they end.

    Attributes:
        name: the pool's name.
        state: `"open"`, `"shutting down"`, `"ending"` or `"ended"`.
        max_workers: how many tasks may run at once.
        workers: the worker processes.
        running: tasks that a worker has.
        waiting: tasks that no worker has got.
        finished: tasks that returned.
        failed: tasks that raised, or that died with their worker.
        cancelled: tasks that were cancelled before they started.
        died: the failed tasks whose worker died.
        recycled: workers that were replaced.
        start_failures: workers that failed to start.
        pss_bytes: the sum of the workers' proportional set sizes: what they use together. None where one is not known.
        private_bytes: the sum of the workers' private memory: what their end would give back. None as above.
    """

    name: str
    state: str
    max_workers: int
    workers: tuple[WorkerStatistics, ...]
    running: int
    waiting: int
    finished: int
    failed: int
    cancelled: int
    died: int
    recycled: int
    start_failures: int
    pss_bytes: int | None
    private_bytes: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold; the workers are a list of such dicts."""
        return as_dict(self) | {"workers": [worker.to_dict() for worker in self.workers]}

    def __str__(self) -> str:
        memory = "unknown" if self.pss_bytes is None else format_size(self.pss_bytes)
        return (
            f"{self.name} ({self.state}): {self.running} running and {self.waiting} waiting, {len(self.workers)} of "
            f"{self.max_workers} workers, PSS {memory}; {self.finished} finished, {self.failed} failed "
            f"({self.died} with their worker), {self.cancelled} cancelled; {self.recycled} workers recycled"
        )


class process_pool_scope(PoolScope):  # noqa: N801  # a context manager that reads like a word
    """Run calls in processes that end with the block, and that are replaced when they have grown.

    ```python
    import asyncio

    async def main() -> None:
        async with process_pool_scope(2, recycle_above="300 MiB", name="parse") as pool:
            assert await pool.run(sum, [1, 2, 3]) == 6
            print(pool.statistics())

    asyncio.run(main())
    ```

    It is a `concurrent.futures.Executor`, also for `loop.run_in_executor`. Functions, arguments and results are
    pickled. Workers start when tasks come. One that dies fails the task that it runs (`WorkerDied`), and no other; no
    task is run twice.

    Between two tasks, a worker whose memory has grown by `recycle_above` since the end of its first task is replaced,
    one at a time: it goes on until its replacement is ready. Before it is `min_life` seconds old it is replaced only
    when it has grown by one and a half times as much; and once it has grown twice as much, it gets no more tasks,
    whether its replacement is ready or not. So no worker begins a task with more growth than that, and there is never
    more than one process above `max_workers`.

    The end of the block waits for all tasks; with `async with`, a thread waits, and the event loop goes on. Left by an
    exception or a cancellation, waiting tasks are cancelled, running ones fail with `ScopeClosed`, and the workers get
    SIGTERM, and SIGKILL after `grace` seconds. Workers end with the process that made the pool, whatever ends it.

    Args:
        max_workers: how many tasks may run at once; by default one for each CPU that the process may use.
        recycle_above: the growth of a worker's memory that has it replaced, in bytes or as a size; None for never.
        max_tasks: how many tasks a worker does at most.
        min_life: the age in seconds from which a worker is replaced as soon as it has grown by `recycle_above`.
        start: `"spawn"`, `"forkserver"` or `"fork"`, as in `multiprocessing`.
        max_pending: how many tasks may be in the pool besides `max_workers`. One more raises `ScopeFull` in `submit`,
            and waits in `run` and `map`.
        initializer: called in each worker before its first task. One that raises has the worker fail to start.
        initargs: its arguments.
        grace: seconds that a worker has to end, and that a task has when the process of the pool is gone.
        start_timeout: seconds that a worker has to become ready. When three workers in a row fail to start, the task
            that waits longest fails with `WorkerStartFailed`, and each further one after one attempt.
        name: the name in reports and errors.

    Raises:
        ConfigError: for an invalid argument.

    Threads: any thread may use a pool. Fork: a child that was forked has to make a pool of its own. A monitor at
    `CRITICAL` has all pools recycle their workers when its clean-up steps were not enough.
    Cost: docs/performance.md, pools.
    """

    @suggest_arguments(
        limit="max_workers", max_running="max_workers", max_tasks_per_child="max_tasks", mp_context="start",
        recycle_at="recycle_above",
    )  # fmt: skip
    def __init__(
        self,
        max_workers: int | None = None,
        *,
        recycle_above: int | str | None = "300 MiB",
        max_tasks: int | None = None,
        min_life: float = 10.0,
        start: StartMethod = "spawn",
        max_pending: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        grace: float = 5.0,
        start_timeout: float = 60.0,
        name: str | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise ConfigError("initializer", initializer, "a function, or None")
        self._settings = settings = ProcessPoolSettings(
            name="process_pool_scope" if name is None else parse_name(name),
            max_workers=parse_max_workers(max_workers, _cpu_count()),
            start=_parse_start(start),
            recycle_above_bytes=_parse_growth(recycle_above),
            max_tasks=None if max_tasks is None else parse_count(max_tasks, name="max_tasks"),
            min_life_s=parse_seconds(min_life, name="min_life"),
            grace_s=parse_seconds(grace, name="grace"),
            start_timeout_s=parse_positive_seconds(start_timeout, "start_timeout"),
            initializer=initializer,
            initargs=tuple(initargs),
        )
        self._name = settings.name
        self._grace_s = settings.grace_s
        self._in_flight = InFlight(settings.name, settings.max_workers, parse_max_pending(max_pending))
        self._pid = os.getpid()
        self._manager = Manager(settings)
        register_recyclable(self)

    def statistics(self) -> ProcessPoolStatistics:
        """Return how many tasks run, wait and have ended so far, and the memory of the workers; reads nothing anew."""
        manager, counts = self._manager, self._in_flight
        workers = tuple(_statistics_of(worker) for worker in list(manager.workers))
        running = sum(worker.task is not None for worker in workers)
        return ProcessPoolStatistics(
            name=self._name,
            state=manager.state,
            max_workers=self._settings.max_workers,
            workers=workers,
            running=running,
            waiting=max(0, counts.unfinished - running),
            finished=counts.finished,
            failed=counts.failed,
            cancelled=counts.cancelled,
            died=manager.died,
            recycled=manager.recycled,
            start_failures=manager.start_failures,
            pss_bytes=_sum([worker.pss_bytes for worker in workers]),
            private_bytes=_sum([worker.private_bytes for worker in workers]),
        )

    def recycle(self) -> None:
        """Have each worker end that has done a task, when it has none; new ones start when tasks come.

        For when memory is short: unlike the replacement of workers that have grown, nothing is started in advance.
        Returns at once; may be called from any thread.
        """
        if self._pid == os.getpid():
            self._manager.recycle()

    def __repr__(self) -> str:
        found = self.statistics()
        return (
            f"<process_pool_scope {self._name!r} {found.state} workers={len(found.workers)} running={found.running} "
            f"waiting={found.waiting}>"
        )

    def _chunk_size(self, chunksize: int) -> int:
        return chunksize

    def _has_started(self) -> bool:
        return self._manager.has_started and self._manager.state != ENDED

    def _start_call(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], place: Place
    ) -> "Future[T]":
        label = label_of(args[0] if fn is call_each else fn)
        task = Task((fn, args, kwargs), label, contextvars.copy_context(), place)
        self._manager.submit(task)
        return task.future

    def _close(self, *, cancel_futures: bool) -> None:
        self._refuse_tasks()
        self._manager.close(cancel_futures=cancel_futures)

    def _abort(self) -> None:
        self._refuse_tasks()
        self._manager.abort()

    def _refuse_tasks(self) -> None:
        self._closed_reason = self._closed_reason or SHUT_DOWN
        self._in_flight.close(SHUT_DOWN)
        unregister_recyclable(self)

    def _wait_ended(self) -> None:
        self._manager.wait_ended()


def _statistics_of(worker: Worker) -> WorkerStatistics:
    task = worker.task  # the manager's thread may set it to None meanwhile
    return WorkerStatistics(
        pid=worker.pid,
        state=worker.state,
        task=None if task is None else task.label,
        tasks=worker.tasks,
        age_s=time.monotonic() - worker.started_at,
        growth_bytes=worker.growth_bytes,
        pss_bytes=worker.pss_bytes,
        private_bytes=worker.private_bytes,
        retire_reason=worker.retire_reason,
    )


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0)) or 1
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _parse_start(value: object) -> str:
    method = parse_choice(value, _START_METHODS, name="start")
    available = multiprocessing.get_all_start_methods()
    if method not in available:
        raise ConfigError("start", value, f"one of {', '.join(map(repr, available))} on this system")
    return method


def _parse_growth(value: object) -> int | None:
    if value is None:
        return None
    size = parse_size(value, name="recycle_above")
    if size < 2**20:
        raise ConfigError("recycle_above", value, "at least 1 MiB: less is within what any process varies by")
    return size
