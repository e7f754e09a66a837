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
from memtools.ledger import Budget, Meter, Owner, Usage, choose_meter
from memtools.ledger._context import active_variable
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, current_usage, open_for_frame
from memtools.scopes._admission import Admission, Admit, Gate, SizeAdmission, Ticket, parse_admission
from memtools.scopes._budgets import check_usage, make_budget, parse_budget
from memtools.scopes._memory_scope import parse_name
from memtools.scopes._task_set import FINISHED, OPEN, SHUTTING_DOWN, Live, Outcomes, ParentTask, Roster
from memtools.scopes._task_statistics import TaskAccounts, TaskFailure, TaskScopeStatistics, TaskUsage
from memtools.units import parse_choice, parse_count, parse_seconds

if TYPE_CHECKING:
    import asyncio


# Give a task a context in which the owner of its scope is active, from wherever the task is created.
#
# A context is copied where a task is created: in the block, in another task of the program, in a callback. Whatever else
# it holds is kept; only the active owner is ours to set.


def context_below(owner: Owner, context: Context | None) -> Context | None:
    """Return `context`, or a copy of the present one, with `owner` active in it; None where a plain copy will do.

    A context that is given is used as it is, so that the task's changes are seen in it; once the owner has ended, what
    is opened in it hangs below the owner's parent.
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


def close_unused(coro: Any) -> None:
    """Close a coroutine that will not be run, so that nobody warns that it was never awaited."""
    close = getattr(coro, "close", None)
    if callable(close):
        close()


# Put the tasks of one scope under drivers, so that each has an owner of its own.
#
# Covers: one example of a driver per name, from which those of the tasks are made. Leaves to others: following steps
# (`memtools.ledger`), the sums by name (`_accounts`).

Drive: TypeAlias = Callable[[Any], TrackedCoroutine[Any]]  # Any: what a loop and a coroutine exchange is between them


class Drivers:
    """The drivers of the tasks of one scope.

    Args:
        meter: who counts.
        accounts: where the final figures of each task go.

    Attributes:
        follows: whether tasks have owners of their own; else a driver only looks at the scope's budget after each step.
        by_name: what puts a coroutine under a driver; look here first, it costs a dict lookup.
    """

    __slots__ = ("_accounts", "_meter", "by_name", "follows")

    def __init__(self, meter: Meter, accounts: TaskAccounts) -> None:
        self._meter = meter
        self._accounts = accounts
        self.follows = meter.tracks_owners
        self.by_name: dict[str, Drive] = {}

    def open(self, name: str) -> Drive:
        """Return what puts coroutines of a name that may be new under a driver."""
        account = self._accounts.by_name.get(name) or self._accounts.open(name)
        drive: Drive = TrackedCoroutine(None, self._meter, name=name, kind="task", on_end=account.add_ended).copy_for
        if account.name == name:  # those that share an account may be any number
            self.by_name[name] = drive
        return drive

    def drive(self, coro: Coroutine[Any, Any, Any], name: str) -> TrackedCoroutine[Any]:
        """Return a coroutine under its driver."""
        if not self.follows:
            return TrackedCoroutine(coro, self._meter)
        return (self.by_name.get(name) or self.open(name))(coro)


# The arguments of `task_scope`, checked.

DEFAULT_NAME: Final = "task_scope"


@record
class TaskScopeSettings:
    """What a task scope was told to do.

    Attributes:
        name: what reports call it.
        limit: how many tasks may run at once, or None.
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
    limit: int | None
    max_pending: int | None
    records_errors: bool
    cancels_on_exit: bool
    grace_s: float
    keep_results: int
    admission: Admission | int | None
    budget: Budget | None
    warn_bytes: int | None
    meter: Meter


def read_settings(
    *,
    limit: object,
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
    if max_pending is not None and limit is None and admission is None:
        raise ConfigError("max_pending", max_pending, "it together with limit= or admit=: nothing waits without them")
    return TaskScopeSettings(
        name=DEFAULT_NAME if name is None else parse_name(name),
        limit=_optional_count(limit, "limit", least=1),
        # Behind an admission every task waits until it has been asked, be it for a moment.
        max_pending=_optional_count(max_pending, "max_pending", least=0 if admission is None else 1),
        records_errors=parse_choice(on_error, ("cancel", "record"), name="on_error") == "record",
        cancels_on_exit=parse_choice(on_exit, ("join", "cancel"), name="on_exit") == "cancel",
        grace_s=parse_seconds(grace, name="grace"),
        keep_results=parse_count(keep_results, name="keep_results", minimum=0),
        admission=admission,
        budget=None if budget is None else make_budget(budget),
        warn_bytes=None if warn is None else parse_budget(warn, name="warn"),
        meter=choose_meter(meter),
    )


def _optional_count(value: object, name: str, *, least: int) -> int | None:
    return None if value is None else parse_count(value, name=name, minimum=least)


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
        print(tasks.usage()["read"])

    asyncio.run(main())
    ```

    A drop-in for `asyncio.TaskGroup`; nothing of a finished task stays alive.

    Args:
        limit: how many tasks may run at once; the others wait for their turn before their first step.
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
        "__weakref__",
        "_accounts",
        "_drivers",
        "_drives",
        "_gate",
        "_open_account",
        "_outcomes",
        "_owner",
        "_roster",
        "_settings",
        "_special",
        "name",
    )

    def __init__(
        self,
        max_running: int | None = None,
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
        self._settings = settings = read_settings(
            limit=max_running, on_error=on_error, on_exit=on_exit, grace=grace, keep_results=keep_results, admit=admit,
            name=name, budget=budget, warn=warn, max_pending=max_pending, meter=meter,
        )  # fmt: skip
        self.name: str = settings.name
        # A budget is looked at after each step, whoever counts.
        self._drives = settings.meter.tracks_owners or settings.budget is not None
        is_gated = settings.limit is not None or settings.admission is not None
        self._special = is_gated or (settings.budget is not None and not settings.meter.tracks_owners)
        self._outcomes = Outcomes(settings.name, settings.keep_results)
        self._drivers = Drivers(settings.meter, self._outcomes.accounts)
        # Looked at for each task, hence not searched for each time.
        self._accounts = self._outcomes.accounts.by_name
        self._open_account = self._outcomes.accounts.open
        self._gate: Gate | None = None
        self._roster: Roster | None = None
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
        if settings.limit is not None or settings.admission is not None:
            admission = _admission_for(settings.admission, owner)
            self._gate = Gate(self.name, settings.limit, settings.max_pending, admission)
        self._roster = Roster(
            self.name, loop, ParentTask(task), self._outcomes, self._gate,
            grace_s=settings.grace_s, records_errors=settings.records_errors,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        roster = cast("Roster", self._roster)
        failed = True
        try:
            if error is not None or self._settings.cancels_on_exit:
                roster.abort()
            # A block that is torn down from outside (`GeneratorExit`) may not wait.
            if not isinstance(error, GeneratorExit):
                await roster.conclude(error, await roster.join(error))
            failed = error is not None
        finally:
            del error, trace  # or exception, traceback and this frame would keep each other alive
            roster.let_go()
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
        roster = self._roster
        kind: type = type(coro)
        if roster is None or roster.refusal or self._special or kind is not CoroutineType:
            return self._create_special(coro, name, context, may_wait=False)[0]

        began = perf_counter()
        driven: TrackedCoroutine[T] | None = None
        try:
            label = str(name) if name else coroutine_name(coro)
            if self._drives:
                driven = (self._drivers.by_name.get(label) or self._drivers.open(label))(coro)
            work = driven or coro
            if context is None and active_variable.get() is self._owner:
                task = roster.loop.create_task(work, name=name)
            else:
                task = roster.loop.create_task(work, name=name, context=context_below(self.owner, context))
        except BaseException:
            close_unused(coro)
            raise
        account = self._accounts.get(label) or self._open_account(label)
        roster.enrol(task, (account, began, driven, None))
        return task

    async def spawn(
        self, coro: "Work[T]", *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        """Start a task as `create_task` does, but return only when it has got its turn: back-pressure.

        Whoever waits here does not count towards `max_pending`. When the wait is cancelled, the task does not start.

        Raises:
            ScopeClosed: when the scope takes no tasks, or stopped taking them meanwhile; the coroutine is closed.
        """
        task, ticket = self._create_special(coro, name, context, may_wait=True)
        if ticket is None or ticket.has_begun or task.done():
            return task

        watcher = ticket.watcher = task.get_loop().create_future()
        try:
            await watcher
        except BaseException:
            if not ticket.has_begun:
                task.cancel()
            raise
        if not ticket.has_begun and task.cancelled():
            raise ScopeClosed(self.name, SHUTTING_DOWN)
        return task

    async def shutdown(self) -> None:
        """Cancel all tasks, take no new ones, and wait until they have ended or the grace is over.

        A second call waits for the same end. Whoever calls it from inside a task of the scope is cancelled, too.
        """
        if self._roster is not None:
            self._roster.abort()
            await self._roster.drained()

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
        for account, _, driven, _ in self._live().values():
            owner = driven.owner if driven is not None else None
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
        waiting = self._gate.waiting if self._gate is not None else 0
        return TaskScopeStatistics(
            name=self.name,
            state=self._state(),
            max_running=self._settings.limit,
            running=len(self._live()) - waiting,
            waiting=waiting,
            finished=total("finished"),
            failed=total("failed"),
            cancelled=total("cancelled"),
            abandoned=total("abandoned"),
        )

    def __repr__(self) -> str:
        waiting = self._gate.waiting if self._gate is not None else 0
        running = len(self._live()) - waiting
        return f"<task_scope {self.name!r} {self._state()} running={running} waiting={waiting}>"

    def _create_special(
        self, coro: "Work[T]", name: str | None, context: Context | None, *, may_wait: bool
    ) -> "tuple[asyncio.Task[T], Ticket | None]":
        # A task that is refused, or counted at the gate, or made of something else than a coroutine of Python's own.
        ticket: Ticket | None = None
        began = perf_counter()
        try:
            roster = self._open_roster()
            label = str(name) if name else coroutine_name(coro)
            account = self._accounts.get(label) or self._open_account(label)
            # What is no coroutine goes to the loop as it is, and is refused there in the loop's own words.
            can_run = hasattr(coro, "send")
            work = coro
            if self._gate is not None and can_run:
                ticket = self._gate.take(roster.loop, may_wait=may_wait)
                work = self._gate.put_before(coro, ticket)
            # One driver, outermost: a task factory of `track_tasks()` leaves a driver alone, and none runs inside another.
            driven = self._drivers.drive(work, label) if self._drives and can_run else None
            task = roster.loop.create_task(driven or work, name=name, context=context_below(self.owner, context))
        except BaseException:
            if ticket is not None and self._gate is not None:
                self._gate.leave(ticket)
            close_unused(coro)
            raise
        roster.enrol(task, (account, began, driven, ticket))
        return task, ticket

    def _open_roster(self) -> Roster:
        if self._roster is None:
            raise ScopeClosed(self.name, _NOT_ENTERED)
        if self._roster.refusal:
            raise ScopeClosed(self.name, self._roster.refusal)
        return self._roster

    def _live(self) -> "dict[asyncio.Task[Any], Live]":
        return {} if self._roster is None else self._roster.live

    def _state(self) -> str:
        return "not entered" if self._roster is None else _STATES[self._roster.refusal]

    def _end_owner(self, failed: bool) -> None:
        close_owner(self.owner, failed=failed)
        check_usage(self.owner, current_usage(self.owner), warn_bytes=self._settings.warn_bytes, failed=failed)


def _admission_for(admission: Admission | int | None, owner: Owner) -> Admission | None:
    return SizeAdmission(admission, lambda: owner.live_bytes) if isinstance(admission, int) else admission
