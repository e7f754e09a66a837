"""Executor of APScheduler 3 that charges each run of a job to the job's name.

A file of its own because it imports APScheduler, and each adapter has the name of its library.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from memtools.errors import ConfigError
from memtools.scopes import memory_scope

try:
    from apscheduler.executors import base as _base  # type: ignore[import-untyped]
    from apscheduler.executors import pool as _pool  # pyright: ignore[reportMissingTypeStubs]
    from apscheduler.util import iscoroutinefunction_partial as _is_async  # type: ignore[import-untyped]
except ImportError as _missing:
    raise ImportError(
        "memtools.integrations.apscheduler needs APScheduler 3: pip install 'apscheduler>=3.10,<4'"
    ) from _missing

# Any: APScheduler ships no types.
Job: TypeAlias = Any
Scheduler: TypeAlias = Any
_Base: Final[Any] = _base.BaseExecutor
_pools: Final[Any] = _pool
if TYPE_CHECKING:
    _Ancestor = object
else:
    _Ancestor = _Base


class MemoryExecutor(_Ancestor):
    """Charges each run of a job to the job's name, and has another executor run it.

    ```python
    from apscheduler.executors.asyncio import AsyncIOExecutor
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from memtools.integrations.apscheduler import MemoryExecutor

    scheduler = AsyncIOScheduler(executors={"default": MemoryExecutor(AsyncIOExecutor(), warn="50 MiB")})
    ```

    For executors that run jobs in this process: of asyncio, of threads, of gevent. The name of a job is its function's
    unless `add_job` gives another; jobs that differ in their arguments only should share one. A run that exceeds its
    budget fails with `BudgetExceeded`, which APScheduler logs and reports as `EVENT_JOB_ERROR`.

    Args:
        executor: runs the jobs.
        warn: a higher peak of one run is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one run may have.
        meter: what counts; see `memory_scope`.

    Raises:
        ConfigError: for an argument that makes no sense, such as an executor of processes.
    """

    def __init__(
        self,
        executor: Any,
        *,
        warn: int | str | None = None,
        budget: int | str | None = None,
        meter: str | None = None,
    ) -> None:
        _Base.__init__(self)
        if not isinstance(executor, _Base):
            raise ConfigError("executor", executor, "an executor of APScheduler 3, such as AsyncIOExecutor()")
        if isinstance(executor, _pools.ProcessPoolExecutor):
            raise ConfigError("executor", executor, "an executor that runs jobs in this process, not in processes")
        memory_scope("job", warn=warn, budget=budget, meter=meter)  # or each run would be refused
        self._executor: Any = executor
        self._limits = (warn, budget, meter)

    def start(self, scheduler: Scheduler, alias: str) -> None:
        """Start the executor that runs the jobs."""
        _Base.start(self, scheduler, alias)
        self._executor.start(scheduler, alias)

    def shutdown(self, wait: bool = True) -> None:
        """Shut it down."""
        self._executor.shutdown(wait)

    def submit_job(self, job: Job, run_times: list[Any]) -> None:
        """Have the job run, each time in a scope of its name."""
        warn, budget, meter = self._limits
        scope = memory_scope(job.name, warn=warn, budget=budget, meter=meter)
        self._executor.submit_job(_ChargedJob(job, scope), run_times)

    def _do_submit_job(self, job: Job, run_times: list[Any]) -> None:
        raise NotImplementedError  # `submit_job` of the other executor calls its own


class _ChargedJob:
    """A job for one run, with a function that opens a scope; the stored one stays as it is."""

    def __init__(self, job: Job, scope: memory_scope) -> None:
        self._job = job
        self.func = _charged(job.func, scope)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)


def _charged(func: Callable[..., Any], scope: memory_scope) -> Callable[..., Any]:
    # A job may be anything that can be called.
    if _is_async(func):

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            return await func(*args, **kwargs)

        return scope(run_async)

    def run(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return scope(run)
