"""The running tasks of one scope, and how they end.

Strong references while tasks run, the outcomes of ended ones, cancellation of all tasks with one deadline, and what the
block raises. Everything here belongs to the thread of one event loop.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final, TypeAlias

from memtools.events import TaskAbandoned, emit
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.scopes._admission import Slot, StartLimiter
from memtools.scopes._task_statistics import OTHER, TaskAccount, TaskAccounts, TaskFailure, describe_failure

OPEN: Final = ""
SHUTTING_DOWN: Final = "it is shutting down"
FINISHED: Final = "it is finished"

MAX_FAILURES: Final = 256
_MAX_NAMES_LOGGED: Final = 20

# After the deadline, tasks that are about to end get these iterations of the loop; with grace=0 it is all they get.
_FINAL_LOOP_ITERATIONS: Final = 5

# Since 3.13 `uncancel` takes back a cancellation that has not been delivered yet.
_UNCANCEL_TAKES_BACK: Final = sys.version_info >= (3, 13)

# The account of a task's name, when the task was created (`perf_counter`), its tracker, and its slot. A plain tuple,
# because one is made for each task, and a named tuple costs five times as much.
TaskEntry: TypeAlias = tuple[TaskAccount, float, "TrackedCoroutine[Any] | None", Slot | None]

_log = logging.getLogger("memtools.scopes")

# The loop holds tasks weakly: without this, an abandoned task could be collected while it runs.
_abandoned: set[asyncio.Task[Any]] = set()


class Outcomes:
    """Counts, errors, recorded failures and results of tasks that have ended, so that the tasks can be dropped.

    Args:
        scope: the name of the scope, for the log.
        keep_results: how many results to keep.

    Attributes:
        accounts: counts by name.
        errors: exceptions that the scope will raise at its end.
        base_error: the first `SystemExit` or `KeyboardInterrupt` among them.
        failures: the last failures that were recorded.
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

    def count(self, task: asyncio.Task[Any], account: TaskAccount, started_at: float) -> BaseException | None:
        """Count a task that is done; return its exception, if it failed.

        Args:
            task: the task; its result is kept only if the scope keeps results.
            account: the account of its name.
            started_at: when it started (`perf_counter`); 0.0 if it never did.
        """
        account.running -= 1
        if started_at:
            account.duration_s += perf_counter() - started_at
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

    def add_error(self, error: BaseException) -> None:
        """Keep an exception until the scope raises it."""
        self.errors.append(error)
        if self.base_error is None and is_base_error(error):
            self.base_error = error

    def record_failure(self, name: str, account: TaskAccount, error: BaseException) -> None:
        """Record a failure without its exception; the first of a name is logged."""
        failure = describe_failure(name, error)
        self.failures.append(failure)
        if account.failed == 1:
            _log.warning(
                "%s: a task failed, the other tasks go on: %s (see errors() for later failures of this name)",
                self._scope,
                failure,
            )

    def clear_errors(self) -> None:
        """Drop the exceptions that were to be raised, because they hold the frames of their tasks."""
        self.errors = []
        self.base_error = None


class ParentTask:
    """The task that runs the block of the `async with`.

    When a task of the scope fails, the block is interrupted by cancelling this task. That cancellation must not be seen
    outside the block, and one that came from outside, at any moment, must be. The rules are those of
    `asyncio.TaskGroup` since gh-116720 (Python 3.13), on every Python.

    Attributes:
        task: the task itself.
        is_interrupted: whether `interrupt` has cancelled it, and `uncancel` has not taken that back.
    """

    __slots__ = ("is_interrupted", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:  # Any: a task of any result
        self.task = task
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Cancel the block, until `uncancel` takes it back."""
        self.is_interrupted = True
        self.task.cancel()

    async def uncancel(self) -> bool:
        """Take back the cancellation of `interrupt`; return whether no other cancellation is left."""
        if not self.is_interrupted:
            return False
        await self._consume_pending_cancellation()
        return self.uncancel_now()

    def uncancel_now(self) -> bool:
        """Do as `uncancel`; before 3.13 a cancellation that was not delivered yet is delivered all the same."""
        if not self.is_interrupted:
            return False
        self.is_interrupted = False
        return self.task.uncancel() == 0

    def redeliver_cancellation(self) -> None:
        """Deliver a cancellation from outside again, because the exception that the scope raises hides it."""
        if self.task.cancelling():
            self.task.uncancel()
            self.task.cancel()

    async def _consume_pending_cancellation(self) -> None:
        if _UNCANCEL_TAKES_BACK or not getattr(self.task, "_must_cancel", False):
            return
        # An eager task failed while the block was running, and the block has awaited nothing since: without this, the
        # cancellation would be delivered at the first await after the scope. `cancelling()` tells how many there were.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return


class TaskSet:
    """The tasks of one scope that have not ended, with strong references.

    Args:
        scope: the name of the scope.
        loop: the loop that the scope was entered in.
        parent: the task that runs the block.
        outcomes: gets the outcome of each task that ends.
        limiter: limits the tasks that run at once, or None.
        grace_s: how long cancelled tasks may go on, in seconds.
        records_errors: whether a failure is recorded and the other tasks go on.

    Attributes:
        tasks: the tasks that have not ended.
        loop: the loop that they run in.
        closed_reason: why no task is accepted; empty while tasks are accepted.
    """

    __slots__ = (
        "_aborting", "_block_has_ended", "_grace_s", "_limiter", "_outcomes", "_parent", "_records_errors", "_scope",
        "_timer", "_waiters", "closed_reason", "loop", "tasks",
    )  # fmt: skip

    def __init__(
        self,
        scope: str,
        loop: asyncio.AbstractEventLoop,
        parent: ParentTask,
        outcomes: Outcomes,
        limiter: StartLimiter | None,
        *,
        grace_s: float,
        records_errors: bool,
    ) -> None:
        self._scope = scope
        self.loop = loop
        self._parent: ParentTask | None = parent
        self._outcomes = outcomes
        self._limiter = limiter
        self._grace_s = grace_s
        self._records_errors = records_errors
        self._aborting = False
        self._block_has_ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.tasks: dict[asyncio.Task[Any], TaskEntry] = {}  # Any: tasks of any result
        self.closed_reason = OPEN

    def add(self, task: asyncio.Task[Any], entry: TaskEntry) -> None:
        """Hold a task until it ends; an eager task may have ended already."""
        account = entry[0]
        account.started += 1
        account.running += 1
        self.tasks[task] = entry
        if task.done() and (task.cancelled() or task.exception() is None):
            self._on_done(task)
            return
        # Of an eager task that has failed, too: the block goes on until its next await (gh-128550).
        task.add_done_callback(self._on_done)
        if self._aborting and not task.done():
            # An eager task has made the scope shut down in its first step, before it was added.
            task.cancel()
            self._start_timer()

    def abort(self) -> None:
        """Cancel all tasks, accept no more, and start the grace; a second call changes nothing."""
        if self._aborting or self.closed_reason == FINISHED:
            return
        self._aborting = True
        self.closed_reason = SHUTTING_DOWN
        for task in tuple(self.tasks):
            task.cancel()
        if self.tasks:
            self._start_timer()

    def cancel(self) -> None:
        """Cancel all tasks, and the block if it has not ended, whose cancellation `raise_errors` takes back."""
        self.abort()
        parent = self._parent
        if parent is not None and not self._block_has_ended and not parent.is_interrupted:
            parent.interrupt()

    async def wait_empty(self) -> None:
        """Wait until all tasks have ended or were abandoned."""
        while self.tasks:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    async def join(self, error: BaseException | None) -> BaseException | None:
        """Wait for the end of all tasks; return the cancellation that has to go on, or None.

        Args:
            error: the exception of the block, or None.
        """
        self._block_has_ended = True
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None and is_base_error(error) and self._outcomes.base_error is None:
            self._outcomes.base_error = error
        try:
            while self.tasks:
                try:
                    await self.wait_empty()
                except asyncio.CancelledError as again:
                    # From outside, or by `ParentTask.interrupt`, which `raise_errors` takes back; perhaps repeatedly.
                    cancelled = again
                    self.abort()
            return cancelled
        finally:
            error = cancelled = None  # otherwise exception, traceback and this frame would keep each other alive

    async def raise_errors(self, error: BaseException | None, cancelled: BaseException | None) -> bool:
        """Raise what the block has to raise; its own exception passes by itself.

        Args:
            error: the exception of the block, or None.
            cancelled: the cancellation that has to go on, or None.

        Returns:
            Whether the exception of the block is a cancellation by this scope, which must not pass.
        """
        outcomes, parent = self._outcomes, self._parent
        self.closed_reason = FINISHED
        base_error, errors = outcomes.base_error, outcomes.errors
        outcomes.clear_errors()
        group: BaseException | None = None
        try:
            if parent is not None and await parent.uncancel():
                cancelled = None
            if base_error is not None:
                raise base_error
            has_failed = error is not None and not isinstance(error, asyncio.CancelledError)
            if error is not None and has_failed and not self._records_errors:
                errors.append(error)
            if parent is not None and (errors or has_failed):
                parent.redeliver_cancellation()
            elif cancelled is not None and error is None:
                raise cancelled
            if errors:
                group = BaseExceptionGroup(f"unhandled errors in {self._scope}", errors)
                raise group from None
            return error is not None and not has_failed and cancelled is None
        finally:
            # As in `join`; the parent holds its task, and the task the exception that ends it.
            error = cancelled = base_error = group = parent = None
            del errors

    def raise_errors_now(self, error: GeneratorExit) -> None:
        """Raise what tasks have failed with so far, together with the exception of a block that may not wait.

        Args:
            error: the exception of the block, which passes by itself where no task has failed.
        """
        for task in tuple(self.tasks):
            if task.done():  # the loop is about to call `_on_done`
                task.remove_done_callback(self._on_done)
                self._on_done(task)
        outcomes, parent = self._outcomes, self._parent
        self._block_has_ended = True
        base_error, errors = outcomes.base_error, outcomes.errors
        outcomes.clear_errors()
        group: BaseException | None = None
        try:
            if parent is not None:
                parent.uncancel_now()
            if base_error is not None:
                raise base_error
            if errors:
                group = BaseExceptionGroup(f"unhandled errors in {self._scope}", [*errors, error])
                raise group from None
        finally:
            base_error = group = parent = None  # as above
            del errors, error

    def forget_parent(self) -> None:
        """Drop the task that ran the block: a scope that has ended must not keep its frame and result alive."""
        self._parent = None
        self._outcomes.clear_errors()

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        account, started_at, _, slot = self.tasks.pop(task)
        if slot is not None and self._limiter is not None:
            started_at = slot.started_at
            self._limiter.release(slot)
        error = self._outcomes.count(task, account, started_at)
        if error is not None:
            self._on_failure(task, account, error)
        if not self.tasks:
            self._wake_waiters()

    def _on_failure(self, task: asyncio.Task[Any], account: TaskAccount, error: BaseException) -> None:
        if self._records_errors and not is_base_error(error):
            self._outcomes.record_failure(_task_name(task, account), account, error)
            return

        parent = self._parent
        if parent is None or parent.task.done():
            self.loop.call_exception_handler(
                {
                    "message": f"a task of {self._scope} failed, but the task that runs the scope's block has ended",
                    "exception": error,
                    "task": task,
                }
            )
            return
        self._outcomes.add_error(error)
        if not self._aborting and not parent.is_interrupted:
            self.abort()
            parent.interrupt()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_at(self.loop.time() + self._grace_s, self._on_deadline, _FINAL_LOOP_ITERATIONS)

    def _on_deadline(self, iterations: int) -> None:
        if not self.tasks:
            return
        if iterations:
            self.loop.call_soon(self._on_deadline, iterations - 1)
        else:
            self._abandon_all()
            if not self.tasks:
                self._wake_waiters()

    def _abandon_all(self) -> None:
        abandoned: list[tuple[str, asyncio.Task[Any]]] = []
        for task, entry in tuple(self.tasks.items()):
            if task.done():
                continue  # the loop is about to call `_on_done`
            del self.tasks[task]
            task.remove_done_callback(self._on_done)
            account, started_at, _, slot = entry
            if slot is not None and self._limiter is not None:
                started_at = slot.started_at or perf_counter()
                self._limiter.release(slot)
            account.running -= 1
            account.abandoned += 1
            account.duration_s += perf_counter() - started_at
            abandoned.append((_task_name(task, account), task))
        if abandoned:
            abandon(self._scope, abandoned, self._grace_s)

    def _wake_waiters(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def is_base_error(error: BaseException) -> bool:
    """Return whether an exception ends the program, and is therefore raised without an exception group."""
    return isinstance(error, (SystemExit, KeyboardInterrupt))


def abandon(scope: str, tasks: Sequence[tuple[str, asyncio.Task[Any]]], grace_s: float) -> None:
    """Report tasks that do not end after their cancellation, and keep them alive until they do.

    Args:
        scope: the name of the task scope.
        tasks: name and task of each.
        grace_s: how long the scope has waited for them, in seconds.
    """
    for _, task in tasks:
        _abandoned.add(task)
        task.add_done_callback(_report_late_failure)

    names = [name for name, _ in tasks]
    for name in names:
        emit(TaskAbandoned(scope, name, grace_s))
    more = f" and {len(names) - _MAX_NAMES_LOGGED} more" if len(names) > _MAX_NAMES_LOGGED else ""
    _log.warning(
        "%s abandons %d of its tasks, which are still running %.1f s after their cancellation: %s%s; "
        "look for blocking calls and swallowed CancelledErrors in them",
        scope,
        len(names),
        grace_s,
        ", ".join(names[:_MAX_NAMES_LOGGED]),
        more,
    )


def _report_late_failure(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        # The scope has ended and cannot raise it any more.
        task.get_loop().call_exception_handler(
            {"message": f"abandoned task {task.get_name()} failed", "exception": error, "task": task}
        )


def _task_name(task: asyncio.Task[Any], account: TaskAccount) -> str:
    """Return the name of a task in reports: that of its account, or its own where many names share the account."""
    return account.name if account.name != OTHER else task.get_name()
