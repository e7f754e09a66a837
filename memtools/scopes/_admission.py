"""Who may take the first step: at most so many at once, in order of arrival, while memory allows.

Covers: places, the row of those who wait, admission, the coroutine that waits for its turn in front of another one.
Leaves to others: what a task is charged with, and how it ends (`_task_scope`).

All calls belong to the thread of one loop.
"""

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from memtools.errors import ConfigError, ScopeClosed
from memtools.scopes._budgets import parse_budget
from memtools.scopes._task_statistics import ScopeFull

if TYPE_CHECKING:
    import asyncio


# Let a task start only while there is memory for it.
#
# Covers: what an admission must offer (`Admission`), and the simplest one, a size: tasks start while the scope has used
# less than that. Leaves to others: the process's own state (a memory monitor has an `admit()` of this shape).
#
# Whoever admits always lets one in when nobody is in: a task that needs more than there is runs alone, rather than never.

# Memory also comes back while nobody ends; often enough to notice, too seldom to cost.
LOOK_AGAIN_AFTER_S: Final = 0.05


@runtime_checkable
class Admission(Protocol):
    """Something that makes a task wait until there is memory for it."""

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return what a task is run inside: entering it waits, leaving it makes room for others."""
        ...


Admit: TypeAlias = Admission | Callable[[], AbstractAsyncContextManager[object]] | int | str


class SizeAdmission:
    """Admit while less than `size_bytes` are used; in order of arrival; one always.

    Args:
        size_bytes: the most that may be used when another task starts.
        used: tells how much is used, in bytes.
    """

    __slots__ = ("_door", "_inside", "_left", "_size_bytes", "_used")

    def __init__(self, size_bytes: int, used: Callable[[], int]) -> None:
        import asyncio  # loaded by whoever runs a loop, not by whoever imports memtools

        self._size_bytes = size_bytes
        self._used = used
        self._inside = 0
        self._door = asyncio.Lock()  # only the first in the row looks, the others wait behind it
        self._left: asyncio.Future[None] | None = None

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return the way in and out for one task."""
        return _Passage(self)

    async def enter(self) -> None:
        """Wait for room."""
        async with self._door:
            while self._inside and self._used() >= self._size_bytes:
                await self._wait_for_change()
            self._inside += 1

    def leave(self) -> None:
        """Make room, and have the first in the row look again."""
        self._inside -= 1
        if self._left is not None:
            _wake(self._left)

    async def _wait_for_change(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._left = loop.create_future()
        timer = loop.call_later(LOOK_AGAIN_AFTER_S, _wake, self._left)
        try:
            await self._left
        finally:
            timer.cancel()
            self._left = None


class _Passage:
    __slots__ = ("_admission",)

    def __init__(self, admission: SizeAdmission) -> None:
        self._admission = admission

    async def __aenter__(self) -> None:
        await self._admission.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave()


class _Called:
    """A plain callable as an `Admission`: `admit=lambda: monitor.admit("200 MiB")`."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._function = function

    def admit(self) -> AbstractAsyncContextManager[object]:
        return self._function()


def parse_admission(value: object) -> Admission | int | None:
    """Return an admission, or the bytes of a size.

    Raises:
        ConfigError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, type):
        raise ConfigError("admit", value, "an object with an admit() method, not its class")
    if callable(getattr(value, "admit", None)):
        return cast("Admission", value)
    if callable(value):
        return _Called(cast("Callable[[], AbstractAsyncContextManager[object]]", value))
    return parse_budget(value, name="admit")


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


T = TypeVar("T")


class Ticket:
    """One task's claim to a place.

    Attributes:
        turn: done when the place is there; None for one who found it free.
        body: the coroutine that has not begun yet; None once it has.
        began: when it began (`perf_counter`), 0.0 before.
        in_place: whether it holds a place.
        watcher: somebody who waits for its beginning, or for its end without one.
    """

    __slots__ = ("began", "body", "in_place", "turn", "watcher")

    def __init__(self) -> None:
        self.turn: asyncio.Future[None] | None = None
        self.body: Coroutine[Any, Any, Any] | None = None  # Any: whatever a task's coroutine returns
        self.began = 0.0
        self.in_place = False
        self.watcher: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the task has taken its first step."""
        return self.began > 0


class Gate:
    """Places, and the row in front of them.

    Args:
        scope: the name of the task scope, for errors.
        limit: how many places there are; None for no bound.
        max_pending: how many may wait; None for no bound.
        admission: whom to ask once a place is there.

    Attributes:
        waiting: how many have not begun.
    """

    __slots__ = ("_admission", "_limit", "_max_pending", "_places", "_row", "_scope", "waiting")

    def __init__(self, scope: str, limit: int | None, max_pending: int | None, admission: Admission | None) -> None:
        self._scope = scope
        self._limit = limit
        self._max_pending = max_pending
        self._admission = admission
        self._places = 0
        # Ordered by arrival, left from anywhere at the same cost: a plain dict searches for its first key.
        self._row: OrderedDict[Ticket, None] = OrderedDict()
        self.waiting = 0

    def take(self, loop: "asyncio.AbstractEventLoop", *, may_wait: bool) -> Ticket:
        """Return a ticket: with a place, or for the end of the row.

        Args:
            loop: the scope's loop.
            may_wait: whether it may wait however many wait already.

        Raises:
            ScopeFull: when it would have to wait and as many as may are waiting.
        """
        is_free = self._limit is None or (self._places < self._limit and not self._row)
        waits = not is_free or self._admission is not None
        if waits and not may_wait and self._max_pending is not None and self.waiting >= self._max_pending:
            raise ScopeFull(self._scope, self.waiting, self._max_pending)

        ticket = Ticket()
        if is_free:
            ticket.in_place = True
            self._places += 1
        else:
            ticket.turn = loop.create_future()
            self._row[ticket] = None
        if waits:
            self.waiting += 1
        else:
            ticket.began = perf_counter()
        return ticket

    def put_before(self, body: Coroutine[Any, Any, T], ticket: Ticket) -> Coroutine[Any, Any, T]:
        """Return `body` itself where nothing has to be waited for, else a coroutine that waits and then runs it."""
        if ticket.has_begun:
            return body
        ticket.body = body
        waiter: Any = self._wait_and_run(body, ticket)  # Any: a Coroutine is not known to have names
        # In reports and reprs of the loop it goes by the name of what it waits for.
        waiter.__name__ = getattr(body, "__name__", waiter.__name__)
        waiter.__qualname__ = getattr(body, "__qualname__", waiter.__qualname__)
        return cast("Coroutine[Any, Any, T]", waiter)

    def leave(self, ticket: Ticket) -> None:
        """Give the place back, or leave the row; a body that never began is closed."""
        if not ticket.has_begun:
            self.waiting -= 1
            _wake_watcher(ticket.watcher)
        if ticket.body is not None:
            ticket.body.close()
            ticket.body = None

        if not ticket.in_place:
            self._row.pop(ticket, None)
            return
        ticket.in_place = False
        self._places -= 1
        self._call_next()

    async def _wait_and_run(self, body: Coroutine[Any, Any, T], ticket: Ticket) -> T:
        if ticket.turn is not None:
            await ticket.turn
        if self._admission is None:
            self._begin(ticket)
            return await body
        async with self._admission.admit():
            self._begin(ticket)
            return await body
        raise AssertionError("an admission must not swallow the exceptions of a task")

    def _begin(self, ticket: Ticket) -> None:
        if ticket.body is None:
            raise ScopeClosed(self._scope, "it gave this task up while it waited")
        ticket.began = perf_counter()
        ticket.body = None
        self.waiting -= 1
        _wake_watcher(ticket.watcher)

    def _call_next(self) -> None:
        while self._row and (self._limit is None or self._places < self._limit):
            ticket, _ = self._row.popitem(last=False)
            if ticket.turn is None or ticket.turn.done():
                continue  # cancelled while it waited
            ticket.in_place = True
            self._places += 1
            ticket.turn.set_result(None)


def _wake_watcher(watcher: "asyncio.Future[None] | None") -> None:
    if watcher is not None and not watcher.done():
        watcher.set_result(None)
