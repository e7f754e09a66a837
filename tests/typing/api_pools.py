"""Types of pools; checked by mypy and pyright, never run."""

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import assert_type

from memtools.monitor import MemoryMonitor
from memtools.pools import (
    ProcessPoolStatistics,
    ThreadPoolStatistics,
    WorkerStatistics,
    process_pool_scope,
    thread_pool_scope,
)


def size(text: str, *, factor: int = 1) -> int:
    return factor * len(text)


async def calls_keep_their_types(monitor: MemoryMonitor) -> None:
    async with thread_pool_scope(2, admit=monitor, max_pending=3) as threads:
        assert_type(threads, thread_pool_scope)
        assert_type(await threads.run(size, "a", factor=2), int)
        assert_type(threads.submit(size, "a"), Future[int])
        assert_type(threads.statistics(), ThreadPoolStatistics)
        await threads.run(size, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    executor: ThreadPoolExecutor = threads
    assert executor is threads


def processes_are_executors() -> None:
    with process_pool_scope(2, recycle_above="50 MiB", start="forkserver", initializer=print) as pool:
        executor: Executor = pool
        assert_type(pool.submit(size, "a", factor=2), Future[int])
        assert_type(pool.statistics(), ProcessPoolStatistics)
        assert_type(pool.statistics().workers, tuple[WorkerStatistics, ...])
        assert_type(list(pool.map(size, ["a", "b"])), list[int])
    process_pool_scope(start="thread")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    executor.shutdown()
