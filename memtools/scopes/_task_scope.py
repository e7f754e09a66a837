"""`task_scope`: asyncio tasks that cannot be lost, and the memory that they use."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import perf_counter
from types import CoroutineType, TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, cast

from memtools._records import record
from memtools._suggestions import suggest_arguments
from memtools.errors import ConfigError, ScopeClosed
from memtools.ledger import Budget, Meter, Owner, Usage, choose_meter
from memtools.ledger._context import active_variable
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, current_usage, open_for_frame
from memtools.ledger._owner import Inexact
from memtools.scopes._admission import (
    Admission,
    Admit,
    MemoryLimitAdmission,
    Slot,
    StartLimiter,
    parse_admission,
)
from memtools.scopes._budgets import check_usage, make_budget, parse_budget
from memtools.scopes._memory_scope import parse_name
from memtools.scopes._task_set import FINISHED, OPEN, SHUTTING_DOWN, Outcomes, ParentTask, TaskEntry, TaskSet
from memtools.scopes._task_statistics import TaskAccounts, TaskFailure, TaskScopeStatistics, TaskUsage
from memtools.units import parse_choice, parse_count, parse_seconds

T = TypeVar("T")

# Any: what a loop and a coroutine exchange is not known here.
Work: TypeAlias = Coroutine[Any, Any, T]
Track: TypeAlias = Callable[[Any], TrackedCoroutine[Any]]

DEFAULT_NAME: Final = "task_scope"

_NOT_ENTERED: Final = "it has not been entered"
_STATES: Final = {OPEN: "open", SHUTTING_DOWN: "shutting down", FINISHED: "finished"}


@record
class TaskScopeSettings:
    """The arguments of a task scope, checked.

    Attributes:
        name: the name in reports.
        max_running: how many tasks may run at once, or None.
        max_pending: how many tasks may wait, or None.
        records_errors: whether failures are recorded and not raised.
        cancels_on_exit: whether the end of the block cancels running tasks.
        grace_s: how long cancelled tasks may go on, in seconds.
        keep_results: how many results are kept.
        admission: what each task waits for before it starts: an admission, a size in bytes, or None.
        budget: the budget of the scope, or None.
        warn_bytes: a higher peak is logged as a warning; None for no warning.
        meter: the meter of the scope.
    """

    name: str
    max_running: int | None
    max_pending: int | None
    records_errors: bool
    cancels_on_exit: bool
    grace_s: float
    keep_results: int
    admission: Admission | int | None
    budget: Budget | None
    warn_bytes: int | None
    meter: Meter


class task_scope:  # noqa: N801  # a context manager that reads like a word, as `memory_scope`
    """Run asyncio tasks that end with the block, with a limit and an account per name.

    ```python
    import asyncio

    async def main():
        async with task_scope(max_running=64, name="import") as tasks:
            for path in ("a", "b"):
                await tasks.spawn(asyncio.sleep(0, path), name="read")
        print(tasks.usage_by_name()["read"])

    asyncio.run(main())
    ```

    A drop-in for `asyncio.TaskGroup`; nothing of an ended task is kept alive.

    Args:
        max_running: how many tasks may run at once; the other tasks wait before their first step.
        on_error: `"cancel"` cancels the other tasks when one fails, and raises an `ExceptionGroup`, as a TaskGroup
            does; `"record"` lets the other tasks go on, and keeps the last 256 failures as text (`errors()`).
            `SystemExit` and `KeyboardInterrupt` are raised bare in both cases, and an exception of the block cancels
            the tasks.
        on_exit: whether the end of the block waits for the tasks (`"join"`) or cancels them (`"cancel"`).
        grace: seconds for all cancelled tasks to end; tasks that still run then are named (`TaskAbandoned` and a
            warning) and abandoned.
        keep_results: how many of the last results to keep for `results()`.
        admit: an object with `admit()`, or a callable, that returns an async context manager: entering it waits while
            memory is short. Or a size (`"200 MiB"`): tasks start while the scope has used less, and one may always run.
        name: the name in reports.
        budget: the highest peak that the scope as a whole may have; see `memory_scope`.
        inexact: what follows when a figure that is not exact exceeds the budget; see `memory_scope`.
        warn: a higher peak of the scope as a whole is logged as a warning; see `memory_scope`.
        max_pending: how many tasks may wait for their start; one more raises `ScopeFull`.
        meter: see `memory_scope`. With a meter that tracks tasks, each task is an owner below the scope.

    Raises:
        ConfigError: at construction, for an invalid argument.
        BudgetExceeded: at the end of a block that raises nothing else.

    Threads: a scope belongs to the loop that it is entered in. One object is entered once.
    Cost: see docs/performance.md, task scope.
    """

    __slots__ = (
        "__weakref__", "_accounts", "_is_cancelled", "_limiter", "_needs_slow_path", "_open_account", "_outcomes",
        "_owner", "_settings", "_task_set", "_trackers", "_tracks", "name",
    )  # fmt: skip

    @suggest_arguments(limit="max_running", max_concurrency="max_running", max_tasks="max_running")
    def __init__(
        self,
        max_running: int | None = None,
        *,
        on_error: Literal["cancel", "record"] = "cancel",
        on_exit: Literal["join", "cancel"] = "join",
        grace: float = 5.0,
        keep_results: int = 0,
        admit: Admit | None = None,
        name: str | None = None,
        budget: int | str | None = None,
        inexact: Inexact = "warn",
        warn: int | str | None = None,
        max_pending: int | None = None,
        meter: str | None = None,
    ) -> None:
        self._settings = settings = parse_settings(
            max_running=max_running, on_error=on_error, on_exit=on_exit, grace=grace, keep_results=keep_results,
            admit=admit, name=name, budget=budget, inexact=inexact, warn=warn, max_pending=max_pending, meter=meter,
        )  # fmt: skip
        self.name: str = settings.name
        # A budget is checked after each step of a task, with every meter.
        self._tracks = settings.meter.tracks_owners or settings.budget is not None
        is_limited = settings.max_running is not None or settings.admission is not None
        self._needs_slow_path = is_limited or (settings.budget is not None and not settings.meter.tracks_owners)
        self._outcomes = Outcomes(settings.name, settings.keep_results)
        self._trackers = Trackers(settings.meter, self._outcomes.accounts)
        # Read for each task, so the attribute lookups are made once.
        self._accounts = self._outcomes.accounts.by_name
        self._open_account = self._outcomes.accounts.open
        self._limiter: StartLimiter | None = None
        self._task_set: TaskSet | None = None
        self._owner: Owner | None = None
        self._is_cancelled = False

    async def __aenter__(self) -> Self:
        if self._owner is not None:
            raise ScopeClosed(self.name, "it has already been entered")
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise ScopeClosed(self.name, "it cannot determine the parent task")

        settings = self._settings
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # documented for CPython
        self._owner = owner = open_for_frame(self.name, "scope", frame, meter=settings.meter, budget=settings.budget)
        if settings.max_running is not None or settings.admission is not None:
            admission = _admission_for(settings.admission, owner)
            self._limiter = StartLimiter(self.name, settings.max_running, settings.max_pending, admission)
        self._task_set = TaskSet(
            self.name, loop, ParentTask(task), self._outcomes, self._limiter,
            grace_s=settings.grace_s, records_errors=settings.records_errors,
        )  # fmt: skip
        if self._is_cancelled:
            self._task_set.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        task_set = cast("TaskSet", self._task_set)
        failed = True
        ended_with: BaseException | None = error
        try:
            if error is not None or self._settings.cancels_on_exit:
                task_set.abort()
            if isinstance(error, GeneratorExit):
                # The block is torn down from outside, and may not wait.
                task_set.raise_errors_now(error)
                return None
            if await task_set.raise_errors(error, await task_set.join(error)):
                failed, ended_with = False, None
                return True
            failed = error is not None
            return None
        except BaseException as raised:
            ended_with = raised
            raise
        finally:
            task_set.forget_parent()
            try:
                self._end_owner(failed, ended_with)
            finally:
                del error, trace, ended_with  # or exception, traceback and this frame would keep each other alive

    def create_task(self, coro: Work[T], *, name: str | None = None, context: Context | None = None) -> asyncio.Task[T]:
        """Start a task in this scope; while `max_running` tasks run, it waits before its first step.

        Args:
            coro: the coroutine to run.
            name: the name of the task and of its account; by default the account has the coroutine's name.
            context: the context to run in; by default a copy of the current one.

        Raises:
            ScopeClosed: when the scope accepts no tasks; the coroutine is closed.
            ScopeFull: when `max_pending` tasks are waiting; the coroutine is closed.
        """
        task_set = self._task_set
        kind: type = type(coro)
        if task_set is None or task_set.closed_reason or self._needs_slow_path or kind is not CoroutineType:
            return self._create_task_slow(coro, name, context, ignore_max_pending=False)[0]

        created_at = perf_counter()
        tracked: TrackedCoroutine[T] | None = None
        try:
            label = str(name) if name else _coroutine_name(coro)
            if self._tracks:
                tracked = (self._trackers.by_name.get(label) or self._trackers.create(label))(coro)
            work = tracked or coro
            if context is None and active_variable.get() is self._owner:
                task = task_set.loop.create_task(work, name=name)
            else:
                task = task_set.loop.create_task(work, name=name, context=_context_with_owner(self.owner, context))
        except BaseException:
            _close_unstarted(coro)
            raise
        account = self._accounts.get(label) or self._open_account(label)
        task_set.add(task, (account, created_at, tracked, None))
        return task

    async def spawn(self, coro: Work[T], *, name: str | None = None, context: Context | None = None) -> asyncio.Task[T]:
        """Start a task as `create_task` does, but return only when the task may start: back-pressure.

        A caller that waits here does not count towards `max_pending`. When the wait is cancelled, the task does not
        start.

        Raises:
            ScopeClosed: when the scope accepts no tasks, or stopped accepting them during the wait; the coroutine is
                closed.
        """
        task, slot = self._create_task_slow(coro, name, context, ignore_max_pending=True)
        if slot is None or slot.has_started or task.done():
            return task

        start_waiter = slot.start_waiter = task.get_loop().create_future()
        try:
            await start_waiter
        except BaseException:
            if not slot.has_started:
                task.cancel()
            raise
        if not slot.has_started and task.cancelled():
            raise ScopeClosed(self.name, SHUTTING_DOWN)
        return task

    def cancel(self) -> None:
        """Cancel all tasks and the block, which ends without a `CancelledError`, and accept no new tasks.

        As `TaskGroup.cancel()` of Python 3.15: failures are raised all the same, and so is a cancellation from
        outside. Before the scope is entered, it is cancelled when it is entered; a second call, or one after the end
        of the block, changes nothing. From the thread of the loop only.
        """
        if self._task_set is None:
            self._is_cancelled = True
        else:
            self._task_set.cancel()

    async def shutdown(self) -> None:
        """Cancel all tasks, accept no new ones, and wait until they have ended or the grace is over.

        A second call waits for the same end. A task of the scope that calls it is cancelled, too.
        """
        if self._task_set is not None:
            self._task_set.abort()
            await self._task_set.wait_empty()

    @property
    def owner(self) -> Owner:
        """The owner that is charged for the scope as a whole.

        Raises:
            ScopeClosed: before the scope is entered.
        """
        if self._owner is None:
            raise ScopeClosed(self.name, _NOT_ENTERED)
        return self._owner

    @property
    def usage(self) -> Usage:
        """The usage of the scope as a whole so far; after the block, its final usage.

        Raises:
            ScopeClosed: before the scope is entered.
        """
        return current_usage(self.owner)

    def usage_by_name(self) -> dict[str, TaskUsage]:
        """Return the usage of the tasks by name, running tasks included; beyond 256 names under `<other>`."""
        open_owners: dict[str, list[Owner]] = {}
        for account, _, tracked, _ in self._unfinished_tasks().values():
            owner = tracked.owner if tracked is not None else None
            if owner is not None and owner.is_active:
                open_owners.setdefault(account.name, []).append(owner)
        meter = self._settings.meter
        return {
            name: account.to_usage(meter, open_owners.get(name, ()))
            for name, account in self._accounts.items()
            if account.started  # an account is also opened for a task that is then refused
        }

    def errors(self) -> tuple[TaskFailure, ...]:
        """Return the last 256 failures, oldest first; only with `on_error="record"`."""
        return tuple(self._outcomes.failures)

    def results(self) -> tuple[object, ...]:
        """Return the last `keep_results` results, in the order in which the tasks ended."""
        return tuple(self._outcomes.results)

    def statistics(self) -> TaskScopeStatistics:
        """Return how many tasks run, wait and have ended so far."""
        total = self._outcomes.accounts.total
        waiting = self._limiter.waiting if self._limiter is not None else 0
        return TaskScopeStatistics(
            name=self.name,
            state=self._state(),
            max_running=self._settings.max_running,
            running=len(self._unfinished_tasks()) - waiting,
            waiting=waiting,
            finished=total("finished"),
            failed=total("failed"),
            cancelled=total("cancelled"),
            abandoned=total("abandoned"),
        )

    def __repr__(self) -> str:
        waiting = self._limiter.waiting if self._limiter is not None else 0
        running = len(self._unfinished_tasks()) - waiting
        return f"<task_scope {self.name!r} {self._state()} running={running} waiting={waiting}>"

    def _create_task_slow(
        self, coro: Work[T], name: str | None, context: Context | None, *, ignore_max_pending: bool
    ) -> tuple[asyncio.Task[T], Slot | None]:
        # For a task that is refused, limited, or made of another object than a native coroutine.
        slot: Slot | None = None
        created_at = perf_counter()
        try:
            task_set = self._open_task_set()
            label = str(name) if name else _coroutine_name(coro)
            account = self._accounts.get(label) or self._open_account(label)
            # Any other object goes to the loop as it is, which raises its own error.
            can_run = hasattr(coro, "send")
            work = coro
            if self._limiter is not None and can_run:
                slot = self._limiter.reserve(task_set.loop, ignore_max_pending=ignore_max_pending)
                work = self._limiter.wrap(coro, slot)
            # The tracker is outermost: the task factory of `track_tasks()` leaves a tracker alone, and so no tracker
            # runs inside another one.
            tracked = self._trackers.track(work, label) if self._tracks and can_run else None
            task = task_set.loop.create_task(
                tracked or work, name=name, context=_context_with_owner(self.owner, context)
            )
        except BaseException:
            if slot is not None and self._limiter is not None:
                self._limiter.release(slot)
            _close_unstarted(coro)
            raise
        task_set.add(task, (account, created_at, tracked, slot))
        return task, slot

    def _open_task_set(self) -> TaskSet:
        if self._task_set is None:
            raise ScopeClosed(self.name, _NOT_ENTERED)
        if self._task_set.closed_reason:
            raise ScopeClosed(self.name, self._task_set.closed_reason)
        return self._task_set

    def _unfinished_tasks(self) -> dict[asyncio.Task[Any], TaskEntry]:
        return {} if self._task_set is None else self._task_set.tasks

    def _state(self) -> str:
        return "not entered" if self._task_set is None else _STATES[self._task_set.closed_reason]

    def _end_owner(self, failed: bool, error: BaseException | None) -> None:
        close_owner(self.owner, failed=failed)
        warn_bytes = self._settings.warn_bytes
        check_usage(self.owner, current_usage(self.owner), warn_bytes=warn_bytes, failed=failed, error=error)


def parse_settings(
    *,
    max_running: object,
    on_error: object,
    on_exit: object,
    grace: object,
    keep_results: object,
    admit: object,
    name: object,
    budget: object,
    inexact: object,
    warn: object,
    max_pending: object,
    meter: str | None,
) -> TaskScopeSettings:
    """Return the checked arguments.

    Raises:
        ConfigError: for an invalid one.
    """
    admission = parse_admission(admit)
    if max_pending is not None and max_running is None and admission is None:
        raise ConfigError(
            "max_pending", max_pending, "it together with max_running= or admit=: no task waits without them"
        )
    return TaskScopeSettings(
        name=DEFAULT_NAME if name is None else parse_name(name),
        max_running=_optional_count(max_running, "max_running", minimum=1),
        # With an admission every task waits, if only for a moment.
        max_pending=_optional_count(max_pending, "max_pending", minimum=0 if admission is None else 1),
        records_errors=parse_choice(on_error, ("cancel", "record"), name="on_error") == "record",
        cancels_on_exit=parse_choice(on_exit, ("join", "cancel"), name="on_exit") == "cancel",
        grace_s=parse_seconds(grace, name="grace"),
        keep_results=parse_count(keep_results, name="keep_results", minimum=0),
        admission=admission,
        budget=None if budget is None else make_budget(budget, inexact=inexact),
        warn_bytes=None if warn is None else parse_budget(warn, name="warn"),
        meter=choose_meter(meter),
    )


def _optional_count(value: object, name: str, *, minimum: int) -> int | None:
    return None if value is None else parse_count(value, name=name, minimum=minimum)


class Trackers:
    """The trackers of the tasks of one scope, so that each task has an owner of its own.

    The trackers of the tasks are copies of one example per name, which is cheaper than making each from its arguments.

    Args:
        meter: the meter of the scope.
        accounts: get the final usage of each task.

    Attributes:
        tracks_owners: whether tasks have owners; otherwise a tracker only checks the scope's budget after each step.
        by_name: the functions that `create` returned; a lookup here is cheaper than `create`.
    """

    __slots__ = ("_accounts", "_meter", "by_name", "tracks_owners")

    def __init__(self, meter: Meter, accounts: TaskAccounts) -> None:
        self._meter = meter
        self._accounts = accounts
        self.tracks_owners = meter.tracks_owners
        self.by_name: dict[str, Track] = {}

    def create(self, name: str) -> Track:
        """Return a function that makes the tracker of a coroutine, for tasks of this name."""
        account = self._accounts.by_name.get(name) or self._accounts.open(name)
        track: Track = TrackedCoroutine(None, self._meter, name=name, kind="task", on_end=account.add_ended).copy_for
        if account.name == name:  # any number of names may share the account for other names
            self.by_name[name] = track
        return track

    def track(self, coro: Coroutine[Any, Any, Any], name: str) -> TrackedCoroutine[Any]:
        """Return the tracker of a coroutine, which runs it."""
        if not self.tracks_owners:
            return TrackedCoroutine(coro, self._meter)
        return (self.by_name.get(name) or self.create(name))(coro)


def _admission_for(admission: Admission | int | None, owner: Owner) -> Admission | None:
    return MemoryLimitAdmission(admission, lambda: owner.live_bytes) if isinstance(admission, int) else admission


def _context_with_owner(owner: Owner, context: Context | None) -> Context | None:
    """Return the context for a task of the scope of `owner`; None where a plain copy of the current one will do.

    A task may be created anywhere: in the block, in another task of the program, in a callback. Only the current owner
    is changed in its context. A given context is used itself, and not copied, so that the task's changes are seen in
    it; what is opened in it after the owner has ended is charged to the owner's parent.
    """
    if context is None:
        if active_variable.get() is owner:
            return None
        context = copy_context()
    if context.get(active_variable) is owner:
        return context
    try:
        context.run(active_variable.set, owner)
    except RuntimeError:
        return context  # code is running in that context at this moment, and its current owner must not change
    return context


def _coroutine_name(coro: Any) -> str:  # Any: loops accept other objects than native coroutines
    try:
        name: str = coro.__qualname__
    except AttributeError:
        return type(coro).__qualname__
    return name


def _close_unstarted(coro: Any) -> None:  # Any: as above
    """Close a coroutine that will not be run, which would otherwise warn that it was never awaited."""
    close = getattr(coro, "close", None)
    if callable(close):
        close()
