"""End everything that a component owns, the latest first, all of it by one deadline.

Covers: waiting, giving up, what fails on the way, a cancellation in mid-way. Leaves to others: how one thing ends
(`_belongings`).

Whatever happens, each thing is told to end. After the deadline, or a cancellation, it is told and not waited for.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from memtools.errors import ConfigError
from memtools.scopes._task_set import abandon

if TYPE_CHECKING:
    from concurrent.futures import Executor


# End a pool of threads or processes without stopping the event loop.
#
# `Executor.shutdown(wait=True)` waits for the calls that run; awaited as it stands, as some guides have it, it stops the
# whole loop and then fails, for it returns None. Work that has not begun is cancelled.


def shut_down_pool(pool: "Executor") -> "asyncio.Future[None]":
    """Begin to end `pool`; the future is done when all of its calls have ended.

    A thread of its own waits, not one of the loop's pool: `asyncio.run` would wait for that one beyond our deadline.

    Raises:
        RuntimeError: when the system gives no thread.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def wait() -> None:
        error: BaseException | None = None
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except Exception as failure:
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=wait, name="memtools end of a pool", daemon=True).start()
    return ended


# What one component owns, in order, and how each of it is ended.
#
# Covers: tasks that are held until they end and whose failures are told at once; the way in which a thing ends, found
# when it is given. Leaves to others: ending all in time (`_ending`).
#
# It knows nothing of the component, so that tasks which run on do not keep that alive: its finaliser can still tell.

# How things say that they end, the most thorough first.
_CLOSE_METHODS: Final = ("shutdown", "aclose", "close", "stop", "clear")


class OwnedResource:
    """One owned thing.

    Attributes:
        thing: the thing.
        label: what errors call it.
        end: ends it by a deadline in seconds of the loop's clock, now or when what it returns is awaited; None for a
            task.
        is_punctual: whether it keeps to the deadline by itself, as a component does.
    """

    __slots__ = ("close", "honours_deadline", "label", "resource")

    def __init__(
        self, thing: object, label: str, end: Callable[[float], object] | None, *, is_punctual: bool = False
    ) -> None:
        self.resource = thing
        self.label = label
        self.close = end
        self.honours_deadline = is_punctual


class Resources:
    """The owned things of one component, in the order in which they came."""

    __slots__ = ("__weakref__", "_by_id", "_name", "failed", "is_closing")

    def __init__(self, name: str) -> None:
        self._name = name
        self._by_id: dict[int, OwnedResource] = {}  # the things may be unhashable, or equal to each other
        self.failed = 0
        self.is_closing = False

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def tasks(self) -> int:
        """How many of them are tasks."""
        return sum(belonging.close is None for belonging in self._by_id.values())

    def add(self, thing: object, label: str, end: Callable[[float], object], *, is_punctual: bool = False) -> None:
        """Own a thing; one that is owned already keeps its place."""
        if id(thing) not in self._by_id:
            self._by_id[id(thing)] = OwnedResource(thing, label, end, is_punctual=is_punctual)

    def add_task(self, task: "asyncio.Task[Any] | asyncio.Future[Any]") -> None:
        """Own a task until it ends."""
        if id(task) in self._by_id:
            return
        self._by_id[id(task)] = OwnedResource(task, _task_label(task), None)
        task.add_done_callback(self._on_done)

    def remove(self, thing: object) -> None:
        """Own it no more; nothing happens where it was not owned."""
        self._by_id.pop(id(thing), None)

    def pop(self) -> list[OwnedResource]:
        """Give up what came last: one thing, or all tasks that came in a row."""
        taken: list[OwnedResource] = []
        while self._by_id:
            number, last = next(reversed(self._by_id.items()))
            if taken and last.close is not None:
                break
            taken.append(self._by_id.pop(number))
            if last.close is not None:
                break
        return taken

    def _on_done(self, task: "asyncio.Future[Any]") -> None:
        if self._by_id.pop(id(task), None) is None or task.cancelled():
            return
        error = task.exception()
        if error is None or self.is_closing:
            return
        self.failed += 1
        # At once, and to whom the program sends such things; the task itself is let go.
        task.get_loop().call_exception_handler(
            {"message": f"{_task_label(task)} of {self._name} failed", "exception": error, "task": task}
        )


def is_task(thing: object) -> "TypeGuard[asyncio.Future[Any]]":
    """Return whether `thing` is a task or a future of asyncio."""
    import asyncio

    return isinstance(thing, asyncio.Future)


def closer_of(thing: object, close: Callable[[Any], object] | None) -> Callable[[float], object]:
    """Return what ends `thing`: `close`, or what it says itself.

    Any: `close` takes the thing, whose type is known where it is given.

    Raises:
        ConfigError: for a thing that says nothing, and for a `close` that cannot be called.
    """
    if close is not None:
        if not callable(close):
            raise ConfigError("close", close, "a callable that takes the thing")
        return lambda _: close(thing)
    from concurrent.futures import Executor  # loaded by whoever has a pool

    if isinstance(thing, Executor):
        return lambda _: shut_down_pool(thing)
    for name in _CLOSE_METHODS:
        if callable(getattr(thing, name, None)):
            # Asked for again in the end: the method of today may be replaced until then.
            return partial(_call, thing, name)
    raise ConfigError("thing", thing, f"a thing with one of the methods {', '.join(_CLOSE_METHODS)}, or close=")


def _call(thing: object, name: str, _deadline: float) -> object:
    ended: object = getattr(thing, name)()
    return ended


def _task_label(task: object) -> str:
    return f"task {getattr(task, 'get_name', lambda: 'future')()}"


_log = logging.getLogger("memtools.lifecycle")

# Turns of the loop that are left to whoever has just been cancelled, beyond the deadline.
_CYCLES_AFTER_CANCEL: Final = 5
_CYCLES_AFTER_CLOSE_CANCEL: Final = 100  # it may have to end others, each in some turns


class Shutdown:
    """One shutdown.

    Args:
        name: the component's name.
        grace_s: how long it may take, in seconds; told when something is given up.
        deadline: when it has to be over, in seconds of the loop's clock.
    """

    def __init__(self, name: str, grace_s: float, deadline: float) -> None:
        self._name = name
        self._grace_s = grace_s
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._caller = asyncio.current_task()
        self._cancelled: asyncio.CancelledError | None = None
        self._exit: BaseException | None = None
        self._errors: list[Exception] = []

    async def close_all(self, belongings: Resources) -> None:
        """End all; never raises."""
        while taken := belongings.pop():
            if taken[0].close is None:
                await self._cancel_tasks(taken)
            else:
                await self._close_resource(taken[0])

    def raise_errors(self) -> None:
        """Raise what has to be raised.

        Raises:
            SystemExit: or KeyboardInterrupt, when something raised it.
            CancelledError: when the caller was cancelled meanwhile.
            ExceptionGroup: of all other errors.
        """
        errors, first = self._errors, self._exit or self._cancelled
        self._errors, self._cancelled, self._exit = [], None, None
        group = ExceptionGroup(f"{self._name} did not shut down cleanly", errors) if errors else None
        try:
            if first is not None and group is not None:
                _log.error("%s did not shut down cleanly either", self._name, exc_info=group)
            if first is not None:
                raise first
            if group is not None:
                raise group
        finally:
            del errors, first, group  # exception, traceback and this frame would keep each other alive

    async def _cancel_tasks(self, taken: list[OwnedResource]) -> None:
        # A task of the component that shuts it down ends by itself.
        labels = {
            cast("asyncio.Future[Any]", belonging.resource): belonging.label
            for belonging in taken
            if belonging.resource is not self._caller
        }
        for future in labels:
            future.cancel()
        left = await self._wait(set(labels), _CYCLES_AFTER_CANCEL)

        for future, label in labels.items():
            if future not in left:
                self._record_result(future, label)
        if left:
            tasks_left = [task for task in left if isinstance(task, asyncio.Task)]
            abandon(self._name, [(task.get_name(), task) for task in tasks_left], self._grace_s)

    async def _close_resource(self, belonging: OwnedResource) -> None:
        try:
            ending = belonging.close(self._deadline) if belonging.close is not None else None
        except BaseException as error:
            self._record_error(error, belonging.label)
            return
        if not isinstance(ending, Awaitable):
            return

        future = asyncio.ensure_future(_awaited(cast("Awaitable[object]", ending)))
        if belonging.honours_deadline:
            await self._wait_for_child(future)
            self._record_result(future, belonging.label)
            return
        left = await self._wait({future}, _CYCLES_AFTER_CANCEL)
        if left:
            future.cancel()
            left = await self._wait({future}, _CYCLES_AFTER_CLOSE_CANCEL)
        if left:
            abandon(self._name, [(belonging.label, future)], self._grace_s)
        if left or future.cancelled():
            text = f"{belonging.label} of {self._name} did not end within {self._grace_s:.1f} s"
            self._record_error(TimeoutError(text), belonging.label)
        else:
            self._record_result(future, belonging.label)

    async def _wait_for_child(self, future: "asyncio.Future[Any]") -> None:
        # A child has our deadline, and ends some turns of the loop after it at the latest.
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as cancelled:
                self._escalate(cancelled)
                future.cancel()

    async def _wait(self, futures: "set[asyncio.Future[Any]]", turns: int) -> "set[asyncio.Future[Any]]":
        left = futures
        try:
            if futures and (seconds := self._deadline - self._loop.time()) > 0:
                left = (await asyncio.wait(futures, timeout=seconds))[1]
        except asyncio.CancelledError as cancelled:
            self._escalate(cancelled)
        for _ in range(turns):
            left = {future for future in left if not future.done()}
            if not left:
                break
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                self._escalate(cancelled)
        return {future for future in left if not future.done()}

    def _escalate(self, cancelled: asyncio.CancelledError) -> None:
        # The caller is wanted elsewhere: nothing is waited for any more, but nothing is left out either.
        self._cancelled = cancelled
        self._deadline = self._loop.time()

    def _record_result(self, future: "asyncio.Future[Any]", label: str) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._record_error(error, label)

    def _record_error(self, error: BaseException, label: str) -> None:
        if not isinstance(error, Exception):
            self._exit = self._exit or error
            return
        error.add_note(f"while {label} of {self._name} was ended")
        self._errors.append(error)


def _awaited(ending: Awaitable[object]) -> "Coroutine[Any, Any, object]":
    async def wait() -> object:
        return await ending

    return wait()
