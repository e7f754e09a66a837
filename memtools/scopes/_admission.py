"""When a task may take its first step: `max_running`, `max_pending` and admission by memory.

Everything here belongs to the thread of one event loop.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from memtools.errors import ConfigError, ScopeClosed, ScopeFull
from memtools.scopes._budgets import parse_budget

T = TypeVar("T")

# Memory is also freed while no task ends: often enough to notice that soon, rarely enough to cost nothing.
RECHECK_INTERVAL_S: Final = 0.05


@runtime_checkable
class Admission(Protocol):
    """Makes a task wait until there is memory for it.

    An implementation has to admit a task whenever no other one is admitted: a task that needs more memory than there is
    then runs alone, instead of never.
    """

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return the context that a task runs in: entering it waits for memory, leaving it may admit another task."""
        ...


Admit: TypeAlias = Admission | Callable[[], AbstractAsyncContextManager[object]] | int | str


class MemoryLimitAdmission:
    """Admits tasks in order of arrival while less than a limit is used, and always one.

    Args:
        limit_bytes: no other task starts while this much is used.
        used: returns how much is used, in bytes.
    """

    __slots__ = ("_active", "_changed", "_limit_bytes", "_lock", "_used")

    def __init__(self, limit_bytes: int, used: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._used = used
        self._active = 0
        self._lock = asyncio.Lock()  # only the first task in the queue checks, the other tasks wait for the lock
        self._changed: asyncio.Future[None] | None = None

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return the context for one task."""
        return _AdmissionContext(self)

    async def acquire(self) -> None:
        """Wait until the limit allows another task."""
        async with self._lock:
            while self._active and self._used() >= self._limit_bytes:
                await self._wait_for_change()
            self._active += 1

    def release(self) -> None:
        """End one task, and let the first one in the queue check again."""
        self._active -= 1
        _wake(self._changed)

    async def _wait_for_change(self) -> None:
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


class Slot:
    """The claim of one task to run.

    Attributes:
        acquired: done when the slot is free for the task; None where it was free at once.
        pending_coroutine: the coroutine that has not started yet; None once it has.
        started_at: when it started (`perf_counter`), 0.0 before.
        is_held: whether the task counts as one of the `max_running`.
        start_waiter: done when the task starts, or ends without having started; for `spawn()`.
    """

    __slots__ = ("acquired", "is_held", "pending_coroutine", "start_waiter", "started_at")

    def __init__(self) -> None:
        self.acquired: asyncio.Future[None] | None = None
        self.pending_coroutine: Coroutine[Any, Any, Any] | None = None  # Any: a coroutine of any result
        self.started_at = 0.0
        self.is_held = False
        self.start_waiter: asyncio.Future[None] | None = None

    @property
    def has_started(self) -> bool:
        """Whether the task has taken its first step."""
        return self.started_at > 0


class StartLimiter:
    """Lets at most `max_running` tasks run at once, in order of arrival, each after its admission.

    Args:
        scope: the name of the task scope, for errors.
        max_running: how many tasks may run at once; None for no limit.
        max_pending: how many tasks may wait; None for no limit.
        admission: entered by each task that holds a slot, before its first step.

    Attributes:
        waiting: how many tasks have not started.
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
        # An OrderedDict, because a task may leave from anywhere: a plain dict searches for its first key.
        self._queue: OrderedDict[Slot, None] = OrderedDict()
        self.waiting = 0

    def reserve(self, loop: asyncio.AbstractEventLoop, *, ignore_max_pending: bool) -> Slot:
        """Return a slot that is held, or queued.

        Args:
            loop: the scope's loop.
            ignore_max_pending: whether the task may wait even if `max_pending` tasks are waiting.

        Raises:
            ScopeFull: when the task would have to wait, and `max_pending` tasks are waiting.
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
        """Return `coro` if it can start at once, else a coroutine that waits and then runs it."""
        if slot.has_started:
            return coro
        slot.pending_coroutine = coro
        waiter: Any = self._wait_and_run(coro, slot)  # Any: the type Coroutine has no __name__
        # The loop's reports and reprs show the name of the task's own coroutine.
        waiter.__name__ = getattr(coro, "__name__", waiter.__name__)
        waiter.__qualname__ = getattr(coro, "__qualname__", waiter.__qualname__)
        return cast("Coroutine[Any, Any, T]", waiter)

    def release(self, slot: Slot) -> None:
        """Release the slot, or leave the queue; a coroutine that never started is closed."""
        if not slot.has_started:
            self.waiting -= 1
            _wake(slot.start_waiter)
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
            raise ScopeClosed(self._scope, "it abandoned this task while the task waited")
        slot.started_at = perf_counter()
        slot.pending_coroutine = None
        self.waiting -= 1
        _wake(slot.start_waiter)

    def _admit_next(self) -> None:
        while self._queue and (self._max_running is None or self._held < self._max_running):
            slot, _ = self._queue.popitem(last=False)
            if slot.acquired is None or slot.acquired.done():
                continue  # the task was cancelled while it waited
            slot.is_held = True
            self._held += 1
            slot.acquired.set_result(None)


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
