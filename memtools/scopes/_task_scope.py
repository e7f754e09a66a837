"""Start tasks that cannot be lost, and know what they used: `task_scope`.

Covers: the block, creating tasks in it, what can be asked about them. Leaves to others: tasks that run and how they end
(`_roster`), turns and admission (`_gate`), owners and their steps (`memtools.ledger`).
"""

import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import perf_counter
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar, cast

from memtools._records import record
from memtools.errors import ConfigError, ScopeClosed
from memtools.ledger import (
    UNUSED,
    Budget,
    Meter,
    Owner,
    TrackedCoroutine,
    Usage,
    choose_meter,
    current_usage,
    end_owner,
    open_for_frame,
)
from memtools.ledger._context import active
from memtools.scopes._admission import Admission, Admit, MemoryLimitAdmission, Slot, StartLimiter, parse_admission
from memtools.scopes._budgets import check_usage, make_budget, parse_budget
from memtools.scopes._memory_scope import parse_name
from memtools.scopes._task_set import FINISHED, OPEN, SHUTTING_DOWN, Outcomes, ParentTask, TaskEntry, TaskSet
from memtools.scopes._task_statistics import TaskAccounts, TaskFailure, TaskScopeStatistics, TaskUsage
from memtools.units import parse_choice, parse_count, parse_seconds

if TYPE_CHECKING:
    import asyncio


# Give a task a context in which the owner of its scope is active, from wherever the task is created.
#
# A context is copied where a task is created: in the block, in another task of the program, in a callback. Whatever else
# it holds is kept; only the active owner is ours to set.


def context_with_owner(owner: Owner, context: Context | None) -> Context | None:
    """Return `context`, or a copy of the present one, with `owner` active in it; None where a plain copy will do.

    A context that is given is used as it is, so that the task's changes are seen in it; once the owner has ended, what
    is opened in it hangs below the owner's parent.
    """
    if context is None:
        if active.get() is owner:
            return None
        context = copy_context()
    if context.get(active) is owner:
        return context
    try:
        context.run(active.set, owner)
    except RuntimeError:
        # Somebody runs in that context right now, and changing who is active there is not ours to do.
        return context
    return context


# What a task is made of: the name of a coroutine, and the end of one that never begins.
#
# Any: what a loop takes for a coroutine need be none of Python's own, and a wrong argument is refused by the loop only.


def coroutine_name(coro: Any) -> str:
    """Return what a coroutine is called; one without a name is called by its type."""
    try:
        name: str = coro.__qualname__
    except AttributeError:
        return type(coro).__qualname__
    return name


def close_unstarted(coro: Any) -> None:
    """Close a coroutine that will not be run, so that nobody warns that it was never awaited."""
    close = getattr(coro, "close", None)
    if callable(close):
        close()


# Put the tasks of one scope under drivers, so that each has an owner of its own.
#
# Covers: one example of a driver per name, from which those of the tasks are made. Leaves to others: following steps
# (`memtools.ledger`), the sums by name (`_accounts`).

Track: TypeAlias = Callable[[Any], TrackedCoroutine[Any]]  # Any: what a loop and a coroutine exchange is between them


class Trackers:
    """The drivers of the tasks of one scope.

    Args:
        meter: who counts.
        accounts: where the final figures of each task go.

    Attributes:
        follows: whether tasks have owners of their own; else a driver only looks at the scope's budget after each step.
        by_name: what puts a coroutine under a driver; look here first, it costs a dict lookup.
    """

    __slots__ = ("_accounts", "_meter", "by_name", "tracks_owners")

    def __init__(self, meter: Meter, accounts: TaskAccounts) -> None:
        self._meter = meter
        self._accounts = accounts
        self.tracks_owners = meter.follows
        self.by_name: dict[str, Track] = {}

    def create(self, name: str) -> Track:
        """Return what puts coroutines of a name that may be new under a driver."""
        account = self._accounts.by_name.get(name) or self._accounts.open(name)
        track: Track = TrackedCoroutine(UNUSED, self._meter, name=name, kind="task", on_end=account.add_ended).following
        if account.name == name:  # those that share an account may be any number
            self.by_name[name] = track
        return track

    def track(self, coro: Coroutine[Any, Any, Any], name: str) -> TrackedCoroutine[Any]:
        """Return a coroutine under its driver."""
        if not self.tracks_owners:
            return TrackedCoroutine(coro, self._meter)
        return (self.by_name.get(name) or self.create(name))(coro)


# The arguments of `task_scope`, checked.

DEFAULT_NAME: Final = "task_scope"


@record
class TaskScopeSettings:
    """What a task scope was told to do.

    Attributes:
        name: what reports call it.
        max_running: how many tasks may run at once, or None.
        max_pending: how many may wait, or None.
        records_errors: whether failures are recorded, and not raised.
        cancels_on_exit: whether leaving the block cancels what runs.
        grace_s: how long cancelled tasks are waited for, in seconds.
        keep_results: how many results are kept.
        admission: whom to ask before a task starts: an admission, a size in bytes, or None.
        budget: what the scope may use, or None.
        warn_bytes: the peak above which a warning is given, or None.
        meter: who counts.
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
    warn: object,
    max_pending: object,
    meter: str | None,
) -> TaskScopeSettings:
    """Return the checked arguments.

    Raises:
        ConfigError: for one that makes no sense.
    """
    admission = parse_admission(admit)
    if max_pending is not None and max_running is None and admission is None:
        raise ConfigError(
            "max_pending", max_pending, "it together with max_running= or admit=: nothing waits without them"
        )
    return TaskScopeSettings(
        name=DEFAULT_NAME if name is None else parse_name(name),
        max_running=_optional_count(max_running, "max_running", minimum=1),
        # Behind an admission every task waits until it has been asked, be it for a moment.
        max_pending=_optional_count(max_pending, "max_pending", minimum=0 if admission is None else 1),
        records_errors=parse_choice(on_error, ("cancel", "record"), name="on_error") == "record",
        cancels_on_exit=parse_choice(on_exit, ("join", "cancel"), name="on_exit") == "cancel",
        grace_s=parse_seconds(grace, name="grace"),
        keep_results=parse_count(keep_results, name="keep_results", minimum=0),
        admission=admission,
        budget=None if budget is None else make_budget(budget),
        warn_bytes=None if warn is None else parse_budget(warn, name="warn"),
        meter=choose_meter(meter),
    )


def _optional_count(value: object, name: str, *, minimum: int) -> int | None:
    return None if value is None else parse_count(value, name=name, minimum=minimum)


T = TypeVar("T")
Work: TypeAlias = Coroutine[Any, Any, T]  # Any: what loop and coroutine exchange is between them

_NOT_ENTERED: Final = "it has not been entered"
_STATES: Final = {OPEN: "open", SHUTTING_DOWN: "shutting down", FINISHED: "finished"}


class task_scope:  # noqa: N801  # a context manager that reads like a word, as `memory_scope`
    """Run tasks that end with the block, at most so many at once, one account per name.

    ```python
    import asyncio

    async def main():
        async with task_scope(max_running=64, name="import") as tasks:
            for path in ("a", "b"):
                await tasks.spawn(asyncio.sleep(0, path), name="read")
        print(tasks.usage_by_name()["read"])

    asyncio.run(main())
    ```

    A drop-in for `asyncio.TaskGroup`; nothing of a finished task stays alive.

    Args:
        max_running: how many tasks may run at once; the others wait for their turn before their first step.
        on_error: `"cancel"` cancels the siblings of a task that fails and raises an `ExceptionGroup`, as a TaskGroup
            does; `"record"` lets them go on and keeps the last 256 failures in words (`errors()`). `SystemExit` and
            `KeyboardInterrupt` are raised bare either way; what the block itself raises cancels the tasks.
        on_exit: whether the end of the block waits for the tasks (`"join"`) or cancels them.
        grace: seconds for all that was cancelled to end; who goes on is named (`TaskAbandoned`, a warning) and left.
        keep_results: how many of the last results to keep for `results()`.
        admit: an object with `admit()`, or a callable, that gives an async context manager: entering it waits while
            memory is short. Or a size (`"200 MiB"`): tasks start while the scope has used less; one always may.
        name: what reports call it.
        budget: the highest peak that the scope as a whole may have; see `memory_scope`.
        warn: a higher peak of the whole is logged as "High memory increase".
        max_pending: how many may wait for their turn; one more raises `ScopeFull`.
        meter: who counts; see `memory_scope`. With a meter that follows, each task is an owner below the scope.

    Raises:
        ConfigError: at construction, for an argument that makes no sense.
        BudgetExceeded: at the end of a block that raises nothing else.

    Threads: belongs to the loop that it is entered in. One object is entered once.
    Cost: see docs/performance.md, task scope.
    """

    __slots__ = (
        "__weakref__", "_accounts", "_limiter", "_needs_slow_path", "_open_account", "_outcomes", "_owner", "_settings",
        "_task_set", "_trackers", "_tracks", "name",
    )  # fmt: skip

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
        warn: int | str | None = None,
        max_pending: int | None = None,
        meter: str | None = None,
    ) -> None:
        self._settings = settings = parse_settings(
            max_running=max_running, on_error=on_error, on_exit=on_exit, grace=grace, keep_results=keep_results, admit=admit,
            name=name, budget=budget, warn=warn, max_pending=max_pending, meter=meter,
        )  # fmt: skip
        self.name: str = settings.name
        # A budget is looked at after each step, whoever counts.
        self._tracks = settings.meter.follows or settings.budget is not None
        is_limited = settings.max_running is not None or settings.admission is not None
        self._needs_slow_path = is_limited or (settings.budget is not None and not settings.meter.follows)
        self._outcomes = Outcomes(settings.name, settings.keep_results)
        self._trackers = Trackers(settings.meter, self._outcomes.accounts)
        # Looked at for each task, hence not searched for each time.
        self._accounts = self._outcomes.accounts.by_name
        self._open_account = self._outcomes.accounts.open
        self._limiter: StartLimiter | None = None
        self._task_set: TaskSet | None = None
        self._owner: Owner | None = None

    async def __aenter__(self) -> Self:
        import asyncio  # loaded by whoever runs a loop, not by whoever imports memtools

        if self._owner is not None:
            raise ScopeClosed(self.name, "it has already been entered")
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise ScopeClosed(self.name, "it cannot determine the parent task")

        settings = self._settings
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # the only way to one's caller
        self._owner = owner = open_for_frame(self.name, "scope", frame, meter=settings.meter, budget=settings.budget)
        if settings.max_running is not None or settings.admission is not None:
            admission = _admission_for(settings.admission, owner)
            self._limiter = StartLimiter(self.name, settings.max_running, settings.max_pending, admission)
        self._task_set = TaskSet(
            self.name, loop, ParentTask(task), self._outcomes, self._limiter,
            grace_s=settings.grace_s, records_errors=settings.records_errors,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task_set = cast("TaskSet", self._task_set)
        failed = True
        try:
            if error is not None or self._settings.cancels_on_exit:
                task_set.abort()
            # A block that is torn down from outside (`GeneratorExit`) may not wait.
            if not isinstance(error, GeneratorExit):
                await task_set.raise_errors(error, await task_set.join(error))
            failed = error is not None
        finally:
            del error, trace  # or exception, traceback and this frame would keep each other alive
            task_set.forget_parent()
            self._end_owner(failed)

    def create_task(
        self, coro: "Work[T]", *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        """Start a task in this scope; past the limit it waits for its turn before its first step.

        Args:
            coro: the coroutine to run.
            name: the task's name, and that of its account; by default the account is the coroutine's.
            context: the context to run in; by default a copy of the present one.

        Raises:
            ScopeClosed: when the scope takes no tasks; the coroutine is closed.
            ScopeFull: when as many as may are waiting; the coroutine is closed.
        """
        task_set = self._task_set
        kind: type = type(coro)
        if task_set is None or task_set.closed_reason or self._needs_slow_path or kind is not CoroutineType:
            return self._create_task_slow(coro, name, context, ignore_max_pending=False)[0]

        began = perf_counter()
        tracked: TrackedCoroutine[T] | None = None
        try:
            label = str(name) if name else coroutine_name(coro)
            if self._tracks:
                tracked = (self._trackers.by_name.get(label) or self._trackers.create(label))(coro)
            work = tracked or coro
            if context is None and active.get() is self._owner:
                task = task_set.loop.create_task(work, name=name)
            else:
                task = task_set.loop.create_task(work, name=name, context=context_with_owner(self.owner, context))
        except BaseException:
            close_unstarted(coro)
            raise
        account = self._accounts.get(label) or self._open_account(label)
        task_set.add(task, (account, began, tracked, None))
        return task

    async def spawn(
        self, coro: "Work[T]", *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        """Start a task as `create_task` does, but return only when it has got its turn: back-pressure.

        Whoever waits here does not count towards `max_pending`. When the wait is cancelled, the task does not start.

        Raises:
            ScopeClosed: when the scope takes no tasks, or stopped taking them meanwhile; the coroutine is closed.
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

    async def shutdown(self) -> None:
        """Cancel all tasks, take no new ones, and wait until they have ended or the grace is over.

        A second call waits for the same end. Whoever calls it from inside a task of the scope is cancelled, too.
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
        """What the scope as a whole used so far, or in the end.

        Raises:
            ScopeClosed: before the scope is entered.
        """
        return current_usage(self.owner)

    def usage_by_name(self) -> dict[str, TaskUsage]:
        """Return what the tasks used, by name, the running ones included; beyond 256 names under `<other>`."""
        open_owners: dict[str, list[Owner]] = {}
        for account, _, tracked, _ in self._running_tasks().values():
            owner = tracked.owner if tracked is not None else None
            if owner is not None and owner.is_active:
                open_owners.setdefault(account.name, []).append(owner)
        meter = self._settings.meter
        return {
            name: account.to_usage(meter, open_owners.get(name, ()))
            for name, account in self._accounts.items()
            if account.started  # an account may have been opened for a task that was refused
        }

    def errors(self) -> tuple[TaskFailure, ...]:
        """Return the last 256 failures, in words, oldest first; only with `on_error="record"`."""
        return tuple(self._outcomes.failures)

    def results(self) -> tuple[object, ...]:
        """Return the last `keep_results` results, in the order in which the tasks ended."""
        return tuple(self._outcomes.results)

    def statistics(self) -> TaskScopeStatistics:
        """Return how the tasks fared so far."""
        total = self._outcomes.accounts.total
        waiting = self._limiter.waiting if self._limiter is not None else 0
        return TaskScopeStatistics(
            name=self.name,
            state=self._state(),
            max_running=self._settings.max_running,
            running=len(self._running_tasks()) - waiting,
            waiting=waiting,
            finished=total("finished"),
            failed=total("failed"),
            cancelled=total("cancelled"),
            abandoned=total("abandoned"),
        )

    def __repr__(self) -> str:
        waiting = self._limiter.waiting if self._limiter is not None else 0
        running = len(self._running_tasks()) - waiting
        return f"<task_scope {self.name!r} {self._state()} running={running} waiting={waiting}>"

    def _create_task_slow(
        self, coro: "Work[T]", name: str | None, context: Context | None, *, ignore_max_pending: bool
    ) -> "tuple[asyncio.Task[T], Slot | None]":
        # A task that is refused, or counted at the gate, or made of something else than a coroutine of Python's own.
        slot: Slot | None = None
        began = perf_counter()
        try:
            task_set = self._open_task_set()
            label = str(name) if name else coroutine_name(coro)
            account = self._accounts.get(label) or self._open_account(label)
            # What is no coroutine goes to the loop as it is, and is refused there in the loop's own words.
            can_run = hasattr(coro, "send")
            work = coro
            if self._limiter is not None and can_run:
                slot = self._limiter.reserve(task_set.loop, ignore_max_pending=ignore_max_pending)
                work = self._limiter.wrap(coro, slot)
            # One driver, outermost: a task factory of `track_tasks()` leaves a driver alone, and none runs inside another.
            tracked = self._trackers.track(work, label) if self._tracks and can_run else None
            task = task_set.loop.create_task(
                tracked or work, name=name, context=context_with_owner(self.owner, context)
            )
        except BaseException:
            if slot is not None and self._limiter is not None:
                self._limiter.release(slot)
            close_unstarted(coro)
            raise
        task_set.add(task, (account, began, tracked, slot))
        return task, slot

    def _open_task_set(self) -> TaskSet:
        if self._task_set is None:
            raise ScopeClosed(self.name, _NOT_ENTERED)
        if self._task_set.closed_reason:
            raise ScopeClosed(self.name, self._task_set.closed_reason)
        return self._task_set

    def _running_tasks(self) -> "dict[asyncio.Task[Any], TaskEntry]":
        return {} if self._task_set is None else self._task_set.tasks

    def _state(self) -> str:
        return "not entered" if self._task_set is None else _STATES[self._task_set.closed_reason]

    def _end_owner(self, failed: bool) -> None:
        usage = end_owner(self.owner, failed=failed)
        check_usage(self.owner, usage, warn_bytes=self._settings.warn_bytes, failed=failed)


def _admission_for(admission: Admission | int | None, owner: Owner) -> Admission | None:
    return MemoryLimitAdmission(admission, lambda: owner.live_bytes) if isinstance(admission, int) else admission
