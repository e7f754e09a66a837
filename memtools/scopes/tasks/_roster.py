"""The tasks of one scope that have not ended, and how they come to their end.

Covers: strong references while they run, what follows when one fails, cancelling all, the one deadline, the wait for
the last, what the block raises. Leaves to others: creating tasks (`_task_scope`), what is kept of an ended one
(`_outcomes`), the count of cancellations (`_parent`).
"""

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from memtools.ledger import Driven
from memtools.scopes.tasks._abandoning import abandon
from memtools.scopes.tasks._accounts import TaskAccount
from memtools.scopes.tasks._gate import Gate, Ticket
from memtools.scopes.tasks._outcomes import Outcomes, is_base_error, task_name
from memtools.scopes.tasks._parent import ParentTask

if TYPE_CHECKING:
    import asyncio

OPEN: Final = ""
SHUTTING_DOWN: Final = "it is shutting down"
FINISHED: Final = "it is finished"

# After the deadline a task that is just about to end gets these turns of the loop; with grace=0 it is all it gets.
_LAST_TURNS: Final = 5


# What the scope knows of a task that has not ended: the account where it is counted, when it was created
# (`perf_counter`), its driver, and its claim to a place. A plain tuple: one is made for each task, and a named one
# costs five times as much.
Live: TypeAlias = tuple[TaskAccount, float, "Driven[Any] | None", Ticket | None]


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
