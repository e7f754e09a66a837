"""Pools of threads and of processes that end with their block."""

from memtools.errors import WorkerDied, WorkerStartFailed
from memtools.pools._process_pool import ProcessPoolStatistics, WorkerStatistics, process_pool_scope
from memtools.pools._thread_pool import ThreadPoolStatistics, thread_pool_scope

__all__ = [
    "ProcessPoolStatistics",
    "ThreadPoolStatistics",
    "WorkerDied",
    "WorkerStartFailed",
    "WorkerStatistics",
    "process_pool_scope",
    "thread_pool_scope",
]
