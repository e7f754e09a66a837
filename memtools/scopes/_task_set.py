"""The tasks of one scope that have not ended, and how they come to their end.

Covers: strong references while they run, what follows when one fails, cancelling all, the one deadline, the wait for
the last, what the block raises. Leaves to others: creating tasks (`_task_scope`), what is kept of an ended one
(`_outcomes`), the count of cancellations (`_parent`).
"""

import logging
import sys
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from memtools.events import TaskAbandoned, emit
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.scopes._admission import Gate, Ticket
from memtools.scopes._task_statistics import OTHER, TaskAccount, TaskAccounts, TaskFailure, describe_failure

if TYPE_CHECKING:
    import asyncio


# Give up tasks that go on in spite of being cancelled: name them, and let them go.
#
# Covers: the event, the warning, the strong reference that an abandoned task still needs, what it raises in the end.
# Leaves to others: when a task is given up (`_task_scope`).

_log = logging.getLogger("memtools.scopes")
_SHOWN_AT_MOST: Final = 20

# The loop itself holds tasks weakly: without this an abandoned one could vanish in the middle of its work.
_still_running: "set[asyncio.Task[Any]]" = set()


def abandon(scope: str, tasks: "Sequence[tuple[str, asyncio.Task[Any]]]", grace_s: float) -> None:
    """Tell that these tasks are given up, by name, and keep them alive until they end.

    Args:
        scope: the name of the task scope.
        tasks: name and task of each.
        grace_s: how long they were waited for, in seconds.
    """
    for _, task in tasks:
        _still_running.add(task)
        task.add_done_callback(_report_end)

    names = [name for name, _ in tasks]
    for name in names:
        emit(TaskAbandoned(scope, name, grace_s))
    more = f" and {len(names) - _SHOWN_AT_MOST} more" if len(names) > _SHOWN_AT_MOST else ""
    _log.warning(
        "%s abandons %d of its tasks, which go on %.1f s after their cancellation: %s%s; "
        "look for blocking calls and for swallowed CancelledError in them",
        scope,
        len(names),
        grace_s,
        ", ".join(names[:_SHOWN_AT_MOST]),
        more,
    )


def _report_end(task: "asyncio.Task[Any]") -> None:
    _still_running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        # The scope has ended: nobody is left to raise it to.
        task.get_loop().call_exception_handler(
            {"message": f"abandoned task {task.get_name()} failed", "exception": error, "task": task}
        )


# How the tasks of one scope ended: counts by name, errors to be raised, failures on record, the last results.
#
# Covers: everything that is taken from a task at its end, so that the task itself can be let go. Leaves to others: what
# follows for the scope (`_task_scope`).

MAX_FAILURES: Final = 256


class Outcomes:
    """What is left of tasks that have ended.

    Args:
        scope: the name of the scope, for the log.
        keep_results: how many results to keep.

    Attributes:
        accounts: counts by name.
        errors: exceptions that the scope will raise at its end.
        base_error: the first `SystemExit` or `KeyboardInterrupt` among them.
        failures: the last failures that were recorded, in words.
        results: the last results.
    """

    __slots__ = ("_keeps_results", "_scope", "accounts", "base_error", "errors", "failures", "results")

    def __init__(self, scope: str, keep_results: int) -> None:
        self._scope = scope
        self._keeps_results = keep_results > 0
        self.accounts = TaskAccounts()
        self.errors: list[BaseException] = []
        self.base_error: BaseException | None = None
        self.failures: deque[TaskFailure] = deque(maxlen=MAX_FAILURES)
        self.results: deque[object] = deque(maxlen=keep_results)

    def count(self, task: "asyncio.Task[Any]", account: TaskAccount, began: float) -> BaseException | None:
        """Count a task that is done; return its exception, if it failed.

        Args:
            task: the task; what it returns is kept only if the scope keeps results.
            account: where it is counted.
            began: when it began (`perf_counter`); 0.0 if it never did.
        """
        account.running -= 1
        if began:
            account.duration_s += perf_counter() - began
        if task.cancelled():
            account.cancelled += 1
            return None

        error = task.exception()
        if error is not None:
            account.failed += 1
            return error
        account.finished += 1
        if self._keeps_results:
            self.results.append(task.result())
        return None

    def keep_error(self, error: BaseException) -> None:
        """Keep an exception until the scope raises it."""
        self.errors.append(error)
        if self.base_error is None and is_base_error(error):
            self.base_error = error

    def record(self, name: str, account: TaskAccount, error: BaseException) -> None:
        """Put a failure on record, in words; the first of a name is logged."""
        failure = describe_failure(name, error)
        self.failures.append(failure)
        if account.failed == 1:
            _log.warning("%s: a task failed, the others go on: %s (later ones are only recorded)", self._scope, failure)

    def forget_errors(self) -> None:
        """Drop what was to be raised: exceptions hold frames, and frames hold everything."""
        self.errors = []
        self.base_error = None


def is_base_error(error: BaseException) -> bool:
    """Return whether an exception ends the program, and is therefore raised bare."""
    return isinstance(error, (SystemExit, KeyboardInterrupt))


def task_name(task: "asyncio.Task[Any]", account: TaskAccount) -> str:
    """Return what a task is called in words: its account's name, or its own where many share the account."""
    return account.name if account.name != OTHER else task.get_name()


# Interrupt the task that holds the `async with`, and leave its count of cancellations as it was.
#
# A task of the scope fails while the block is at work: the block is interrupted by cancelling its task. That is our own
# cancellation and must not be seen outside; one that came from outside, at whatever moment, must be. The rules are those
# of `asyncio.TaskGroup` since gh-116720 (Python 3.13), on every Python.

# Since 3.13 `uncancel` takes back a cancellation that has not been delivered yet.
_UNCANCEL_TAKES_BACK: Final = sys.version_info >= (3, 13)


class ParentTask:
    """The task that holds the block.

    Attributes:
        task: the task itself.
        is_interrupted: whether we have cancelled it and not yet taken that back.
    """

    __slots__ = ("is_interrupted", "task")

    def __init__(self, task: "asyncio.Task[Any]") -> None:  # Any: what it returns is its own business
        self.task = task
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Cancel the block, to be taken back by `settle`."""
        self.is_interrupted = True
        self.task.cancel()

    async def settle(self) -> bool:
        """Take our cancellation back; return whether no other one is left."""
        if not self.is_interrupted:
            return False
        await self._receive_pending()
        self.is_interrupted = False
        return self.task.uncancel() == 0

    def renew_outer_cancellation(self) -> None:
        """Have a cancellation from outside delivered again: an exception of ours is about to hide it."""
        if self.task.cancelling():
            self.task.uncancel()
            self.task.cancel()

    async def _receive_pending(self) -> None:
        if _UNCANCEL_TAKES_BACK or not getattr(self.task, "_must_cancel", False):
            return
        import asyncio

        # An eager task failed while the block was running, and nothing was awaited since: without this the
        # cancellation would hit whatever is awaited after the scope. How many there were is told by the count.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return


OPEN: Final = ""
SHUTTING_DOWN: Final = "it is shutting down"
FINISHED: Final = "it is finished"

# After the deadline a task that is just about to end gets these turns of the loop; with grace=0 it is all it gets.
_LAST_TURNS: Final = 5


# What the scope knows of a task that has not ended: the account where it is counted, when it was created
# (`perf_counter`), its driver, and its claim to a place. A plain tuple: one is made for each task, and a named one
# costs five times as much.
Live: TypeAlias = tuple[TaskAccount, float, "TrackedCoroutine[Any] | None", Ticket | None]


class Roster:
    """Tasks of one scope, from its beginning to its end.

    Args:
        scope: the name of the scope.
        loop: the loop that it was entered in.
        parent: the task that holds the block.
        outcomes: takes what is left of ended tasks.
        gate: counts places, where they are limited.
        grace_s: how long cancelled tasks are waited for, in seconds.
        records_errors: whether a failure is recorded, and the others go on.

    Attributes:
        live: the tasks that have not ended.
        loop: the loop that they run in.
        refusal: why no task is taken; empty while they are.
    """

    __slots__ = (
        "_aborting", "_gate", "_grace_s", "_outcomes", "_parent", "_records_errors", "_scope", "_timer",
        "_waiters", "live", "loop", "refusal",
    )  # fmt: skip

    def __init__(
        self,
        scope: str,
        loop: "asyncio.AbstractEventLoop",
        parent: ParentTask,
        outcomes: Outcomes,
        gate: Gate | None,
        *,
        grace_s: float,
        records_errors: bool,
    ) -> None:
        self._scope = scope
        self.loop = loop
        self._parent: ParentTask | None = parent
        self._outcomes = outcomes
        self._gate = gate
        self._grace_s = grace_s
        self._records_errors = records_errors
        self._aborting = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.live: dict[asyncio.Task[Any], Live] = {}  # Any: what a task returns is the user's
        self.refusal = OPEN

    def enrol(self, task: "asyncio.Task[Any]", live: Live) -> None:
        """Hold a task until it ends; an eager one may have ended already."""
        account = live[0]
        account.started += 1
        account.running += 1
        self.live[task] = live
        if task.done():
            self._on_done(task)
            return
        task.add_done_callback(self._on_done)
        if self._aborting:
            # In its first step, an eager one has made the scope shut down before it was held.
            task.cancel()
            self._start_timer()

    def abort(self) -> None:
        """Cancel all, take no more, and set the deadline; a second call changes nothing."""
        if self._aborting or self.refusal == FINISHED:
            return
        self._aborting = True
        self.refusal = SHUTTING_DOWN
        for task in tuple(self.live):
            task.cancel()
        if self.live:
            self._start_timer()

    async def drained(self) -> None:
        """Wait until nobody is left, all having ended or been given up."""
        while self.live:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    async def join(self, error: BaseException | None) -> BaseException | None:
        """Wait for the end of all tasks; return the cancellation that has to go on, if there is one.

        Args:
            error: what the block has raised.
        """
        import asyncio

        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None and is_base_error(error) and self._outcomes.base_error is None:
            self._outcomes.base_error = error
        try:
            while self.live:
                try:
                    await self.drained()
                except asyncio.CancelledError as again:
                    # From outside, or our own, which `conclude` takes back. It may come more than once.
                    cancelled = again
                    self.abort()
            return cancelled
        finally:
            error = cancelled = None  # exception, traceback and this frame would keep each other alive

    async def conclude(self, error: BaseException | None, cancelled: BaseException | None) -> None:
        """Raise what the block has to raise beyond its own exception, which passes by itself.

        Args:
            error: what the block has raised.
            cancelled: the cancellation that has to go on.
        """
        outcomes, parent = self._outcomes, self._parent
        self.refusal = FINISHED
        base_error, errors = outcomes.base_error, outcomes.errors
        outcomes.forget_errors()
        group: BaseException | None = None
        try:
            if parent is not None and await parent.settle():
                cancelled = None
            if base_error is not None:
                raise base_error
            has_failed = error is not None and not _is_cancellation(error)
            if error is not None and has_failed and not self._records_errors:
                errors.append(error)
            if parent is not None and (errors or has_failed):
                parent.renew_outer_cancellation()
            elif cancelled is not None and error is None:
                raise cancelled
            if errors:
                group = BaseExceptionGroup(f"unhandled errors in {self._scope}", errors)
                raise group from None
        finally:
            error = cancelled = base_error = group = None  # the same as in `join`
            del errors

    def let_go(self) -> None:
        """Forget the holding task, whose frame and result are no business of a scope that has ended."""
        self._parent = None
        self._outcomes.forget_errors()

    def _on_done(self, task: "asyncio.Task[Any]") -> None:
        account, began, _, ticket = self.live.pop(task)
        if ticket is not None and self._gate is not None:
            began = ticket.began
            self._gate.leave(ticket)
        error = self._outcomes.count(task, account, began)
        if error is not None:
            self._on_failure(task, account, error)
        if not self.live:
            self._wake()

    def _on_failure(self, task: "asyncio.Task[Any]", account: TaskAccount, error: BaseException) -> None:
        if self._records_errors and not is_base_error(error):
            self._outcomes.record(task_name(task, account), account, error)
            return

        parent = self._parent
        if parent is None or parent.task.done():
            self.loop.call_exception_handler(
                {
                    "message": f"a task of {self._scope} failed, but the task that holds the scope has ended",
                    "exception": error,
                    "task": task,
                }
            )
            return
        self._outcomes.keep_error(error)
        if not self._aborting and not parent.is_interrupted:
            self.abort()
            parent.interrupt()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_at(self.loop.time() + self._grace_s, self._give_up, _LAST_TURNS)

    def _give_up(self, turns: int) -> None:
        if not self.live:
            return
        if turns:
            self.loop.call_soon(self._give_up, turns - 1)
        else:
            self._abandon_all()
            if not self.live:
                self._wake()

    def _abandon_all(self) -> None:
        left: list[tuple[str, asyncio.Task[Any]]] = []
        for task, live in tuple(self.live.items()):
            if task.done():
                continue  # its callback is on the way
            del self.live[task]
            task.remove_done_callback(self._on_done)
            account, began, _, ticket = live
            if ticket is not None and self._gate is not None:
                began = ticket.began or perf_counter()
                self._gate.leave(ticket)
            account.running -= 1
            account.abandoned += 1
            account.duration_s += perf_counter() - began
            left.append((task_name(task, account), task))
        if left:
            abandon(self._scope, left, self._grace_s)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _is_cancellation(error: BaseException) -> bool:
    import asyncio

    return isinstance(error, asyncio.CancelledError)
