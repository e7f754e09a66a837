"""Accounts for the tasks of a Celery worker, and processes of its pool that are replaced when they have grown."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from memtools.errors import ConfigError
from memtools.integrations._recycling import (
    DEFAULT_JITTER,
    DEFAULT_WARM_UP,
    RecyclingOptions,
    WorkerSize,
    WorkerTurns,
    make_options,
)
from memtools.monitor import MemoryMonitor
from memtools.scopes import memory_scope

try:
    import celery as _celery  # type: ignore[import-untyped]
    from celery import concurrency as _concurrency  # pyright: ignore[reportMissingTypeStubs]
    from celery import signals as _signals  # pyright: ignore[reportMissingTypeStubs]
    from celery.utils.log import get_logger as _get_logger  # type: ignore[import-untyped]
except ImportError as _missing:
    raise ImportError("memtools.integrations.celery needs Celery: pip install celery") from _missing

# Any: Celery ships no types.
Application: TypeAlias = Any
Task: TypeAlias = Any
WorkController: TypeAlias = Any
_signal: Final[Any] = _signals
_pools: Final[Any] = _concurrency

_log: Final[logging.Logger] = _get_logger("memtools.integrations.celery")
_PREFORK: Final = "celery.concurrency.prefork"
_CHARGED: Final = "_memtools_is_charged"


def watch_worker(
    app: Application,
    *,
    warn: int | str | None = None,
    budget: int | str | None = None,
    meter: str | None = None,
    monitor: MemoryMonitor | None = None,
    growth: int | str | None = None,
    limit: int | str | None = None,
    warm_up: int = DEFAULT_WARM_UP,
    jitter: float = DEFAULT_JITTER,
) -> None:
    """Charge each task that a worker of `app` runs to the task's name; replace processes of the pool that have grown.

    ```python
    from celery import Celery
    from memtools.integrations.celery import watch_worker

    app = Celery("shop")
    watch_worker(app, warn="50 MiB", growth="200 MiB")
    ```

    It is called once, beside the application, and does something in workers only: in a program that sends tasks it does
    nothing. Tasks of all pools are charged: prefork (started by fork), gevent, eventlet, threads and solo. A task that
    exceeds its budget fails with `BudgetExceeded`.

    A process of the prefork pool that has grown waits for its turn, so that only one goes at a time, and only while all
    the others serve; the growth is looked at between two tasks. Then it ends where one ends that has exceeded Celery's
    own `worker_max_memory_per_child`: after the result of its task was handed over, so that no task is lost and none is
    run again. That setting, a limit for the highest size that a process ever had, holds besides.

    Args:
        app: the application.
        warn: a higher peak of one task is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one task may have.
        meter: what counts; see `memory_scope`.
        monitor: started in each process that runs tasks, and stopped at its end; while its level is `CRITICAL`, a
            quarter of the growth suffices.
        growth: of a process, over its size when it was warm, at which it is replaced; None for never.
        limit: a process of this size is replaced whatever it has grown; None for no limit; requires `growth`.
        warm_up: tasks after which a process is warm; five minutes suffice, too.
        jitter: up to this share is added to the growth, different for each process, so that they do not go together.

    Raises:
        ConfigError: for an argument that makes no sense.
    """
    if not _is_a(app, _celery.Celery):
        raise ConfigError("app", app, "an application of Celery")
    if growth is None and limit is not None:
        raise ConfigError("limit", limit, "None where growth is None")
    if monitor is not None and not _is_a(monitor, MemoryMonitor):
        raise ConfigError("monitor", monitor, "a MemoryMonitor")
    memory_scope("task", warn=warn, budget=budget, meter=meter)  # or each task would be refused
    options = None if growth is None else make_options(growth, limit, monitor, warm_up, jitter)

    def charge_tasks(sender: WorkController, **_: Any) -> None:
        if sender.app is not app:
            return
        for task in app.tasks.values():
            _charge(task, memory_scope(task.name, warn=warn, budget=budget, meter=meter))
        is_prefork = _is_prefork(sender)
        if options is not None:
            if is_prefork:
                _recycle_processes(sender, options)
            else:
                _log.error(
                    "growth= replaces processes of the prefork pool; this pool has none, and nothing is replaced"
                )
        if monitor is not None:
            _run_monitor(monitor, is_prefork=is_prefork)

    _signal.worker_init.connect(charge_tasks, weak=False)


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _charge(task: Task, scope: memory_scope) -> None:
    # As Celery does for `autoretry_for`. A worker calls `run`, and so does `__call__` of a class of tasks.
    run: Callable[..., Any] = task.run
    if getattr(run, _CHARGED, False):
        return

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    task.run = scope(call)
    setattr(task.run, _CHARGED, True)


def _is_prefork(worker: WorkController) -> bool:
    pool: type = _pools.get_implementation(worker.pool_cls)
    return pool.__module__ == _PREFORK


def _run_monitor(monitor: MemoryMonitor, *, is_prefork: bool) -> None:
    def start(**_: Any) -> None:
        monitor.start()

    def stop(**_: Any) -> None:
        monitor.stop()

    if is_prefork:
        _signal.worker_process_init.connect(start, weak=False)
        _signal.worker_process_shutdown.connect(stop, weak=False)
    else:
        start()
        _signal.worker_shutdown.connect(stop, weak=False)


def _recycle_processes(worker: WorkController, options: RecyclingOptions) -> None:
    turns = WorkerTurns(max(1, worker.concurrency))
    growth_limit = _GrowthLimit(worker.max_memory_per_child or sys.maxsize)

    def join(**_: Any) -> None:
        turns.join()
        growth_limit.begin(WorkerSize(options, unit="tasks"), turns)

    worker.max_memory_per_child = growth_limit
    _signal.worker_process_init.connect(join, weak=False)


class _GrowthLimit(int):
    """A `worker_max_memory_per_child` that knows more than a number.

    billiard compares it with the peak of the process after each task, `used > limit`, in the one place where a process
    of the pool can end without losing a task. Python asks the operand of the subclass first.
    """

    _size: WorkerSize | None = None
    _turns: WorkerTurns | None = None
    _tasks: int = 0

    def begin(self, size: WorkerSize, turns: WorkerTurns) -> None:
        """Look at the size of this process from now on."""
        self._size, self._turns = size, turns
        self._tasks = 0

    def __lt__(self, used_kib: int) -> bool:
        self._tasks += 1
        try:
            if self._size is None or self._turns is None:
                return int(self) < used_kib
            reason = self._size.reason_to_recycle(self._tasks)
            if reason is None and int(self) < used_kib:
                reason = f"worker_max_memory_per_child: {used_kib} KiB were used once, the limit is {int(self)} KiB"
            if reason is None or not self._turns.try_take(self._size.grown_bytes):
                return False
        except Exception:
            _log.exception("the size of this process cannot be read, and it is not replaced")
            self._size = None
            return False
        _log.warning("%s", reason)
        return True

    def __format__(self, spec: str) -> str:
        # In the warning that billiard logs of its own limit.
        return format(int(self), spec) if int(self) < sys.maxsize else "growth"
