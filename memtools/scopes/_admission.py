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
RECHECK_INTERVAL_S: Final = 0.05


@runtime_checkable
class Admission(Protocol):
    """Something that makes a task wait until there is memory for it."""

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return what a task is run inside: entering it waits, leaving it makes room for others."""
        ...


Admit: TypeAlias = Admission | Callable[[], AbstractAsyncContextManager[object]] | int | str


class MemoryLimitAdmission:
    """Admit while less than `size_bytes` are used; in order of arrival; one always.

    Args:
        size_bytes: the most that may be used when another task starts.
        used: tells how much is used, in bytes.
    """

    __slots__ = ("_active", "_changed", "_limit_bytes", "_lock", "_used")

    def __init__(self, limit_bytes: int, used: Callable[[], int]) -> None:
        import asyncio  # loaded by whoever runs a loop, not by whoever imports memtools

        self._limit_bytes = limit_bytes
        self._used = used
        self._active = 0
        self._lock = asyncio.Lock()  # only the first in the row looks, the others wait behind it
        self._changed: asyncio.Future[None] | None = None

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return the way in and out for one task."""
        return _AdmissionContext(self)

    async def acquire(self) -> None:
        """Wait for room."""
        async with self._lock:
            while self._active and self._used() >= self._limit_bytes:
                await self._wait_for_change()
            self._active += 1

    def release(self) -> None:
        """Make room, and have the first in the row look again."""
        self._active -= 1
        if self._changed is not None:
            _wake(self._changed)

    async def _wait_for_change(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._changed = loop.create_future()
        timer = loop.call_later(RECHECK_INTERVAL_S, _wake, self._changed)
        try:
            await self._changed
        finally:
            timer.cancel()
            self._changed = None


class _AdmissionContext:
    __slots__ = ("_admission",)

    def __init__(self, admission: MemoryLimitAdmission) -> None:
        self._admission = admission

    async def __aenter__(self) -> None:
        await self._admission.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.release()


class _CallableAdmission:
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
        return _CallableAdmission(cast("Callable[[], AbstractAsyncContextManager[object]]", value))
    return parse_budget(value, name="admit")


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


T = TypeVar("T")


class Slot:
    """One task's claim to a place.

    Attributes:
        turn: done when the place is there; None for one who found it free.
        body: the coroutine that has not begun yet; None once it has.
        began: when it began (`perf_counter`), 0.0 before.
        in_place: whether it holds a place.
        watcher: somebody who waits for its beginning, or for its end without one.
    """

    __slots__ = ("acquired", "is_held", "pending_coroutine", "start_waiter", "started_at")

    def __init__(self) -> None:
        self.acquired: asyncio.Future[None] | None = None
        self.pending_coroutine: Coroutine[Any, Any, Any] | None = None  # Any: whatever a task's coroutine returns
        self.started_at = 0.0
        self.is_held = False
        self.start_waiter: asyncio.Future[None] | None = None

    @property
    def has_started(self) -> bool:
        """Whether the task has taken its first step."""
        return self.started_at > 0


class StartLimiter:
    """Places, and the row in front of them.

    Args:
        scope: the name of the task scope, for errors.
        limit: how many places there are; None for no bound.
        max_pending: how many may wait; None for no bound.
        admission: whom to ask once a place is there.

    Attributes:
        waiting: how many have not begun.
    """

    __slots__ = ("_admission", "_held", "_max_pending", "_max_running", "_queue", "_scope", "waiting")

    def __init__(
        self, scope: str, max_running: int | None, max_pending: int | None, admission: Admission | None
    ) -> None:
        self._scope = scope
        self._max_running = max_running
        self._max_pending = max_pending
        self._admission = admission
        self._held = 0
        # Ordered by arrival, left from anywhere at the same cost: a plain dict searches for its first key.
        self._queue: OrderedDict[Slot, None] = OrderedDict()
        self.waiting = 0

    def reserve(self, loop: "asyncio.AbstractEventLoop", *, ignore_max_pending: bool) -> Slot:
        """Return a ticket: with a place, or for the end of the row.

        Args:
            loop: the scope's loop.
            may_wait: whether it may wait however many wait already.

        Raises:
            ScopeFull: when it would have to wait and as many as may are waiting.
        """
        is_free = self._max_running is None or (self._held < self._max_running and not self._queue)
        waits = not is_free or self._admission is not None
        if waits and not ignore_max_pending and self._max_pending is not None and self.waiting >= self._max_pending:
            raise ScopeFull(self._scope, self.waiting, self._max_pending)

        slot = Slot()
        if is_free:
            slot.is_held = True
            self._held += 1
        else:
            slot.acquired = loop.create_future()
            self._queue[slot] = None
        if waits:
            self.waiting += 1
        else:
            slot.started_at = perf_counter()
        return slot

    def wrap(self, coro: Coroutine[Any, Any, T], slot: Slot) -> Coroutine[Any, Any, T]:
        """Return `body` itself where nothing has to be waited for, else a coroutine that waits and then runs it."""
        if slot.has_started:
            return coro
        slot.pending_coroutine = coro
        waiter: Any = self._wait_and_run(coro, slot)  # Any: a Coroutine is not known to have names
        # In reports and reprs of the loop it goes by the name of what it waits for.
        waiter.__name__ = getattr(coro, "__name__", waiter.__name__)
        waiter.__qualname__ = getattr(coro, "__qualname__", waiter.__qualname__)
        return cast("Coroutine[Any, Any, T]", waiter)

    def release(self, slot: Slot) -> None:
        """Give the place back, or leave the row; a body that never began is closed."""
        if not slot.has_started:
            self.waiting -= 1
            _wake_watcher(slot.start_waiter)
        if slot.pending_coroutine is not None:
            slot.pending_coroutine.close()
            slot.pending_coroutine = None

        if not slot.is_held:
            self._queue.pop(slot, None)
            return
        slot.is_held = False
        self._held -= 1
        self._admit_next()

    async def _wait_and_run(self, coro: Coroutine[Any, Any, T], slot: Slot) -> T:
        if slot.acquired is not None:
            await slot.acquired
        if self._admission is None:
            self._start(slot)
            return await coro
        async with self._admission.admit():
            self._start(slot)
            return await coro
        raise AssertionError("an admission must not swallow the exceptions of a task")

    def _start(self, slot: Slot) -> None:
        if slot.pending_coroutine is None:
            raise ScopeClosed(self._scope, "it gave this task up while it waited")
        slot.started_at = perf_counter()
        slot.pending_coroutine = None
        self.waiting -= 1
        _wake_watcher(slot.start_waiter)

    def _admit_next(self) -> None:
        while self._queue and (self._max_running is None or self._held < self._max_running):
            slot, _ = self._queue.popitem(last=False)
            if slot.acquired is None or slot.acquired.done():
                continue  # cancelled while it waited
            slot.is_held = True
            self._held += 1
            slot.acquired.set_result(None)


def _wake_watcher(watcher: "asyncio.Future[None] | None") -> None:
    if watcher is not None and not watcher.done():
        watcher.set_result(None)
