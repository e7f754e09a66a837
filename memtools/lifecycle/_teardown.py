"""The resources of a component, and the shutdown that closes them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, TypeGuard, cast

from memtools._threads import call_in_own_thread
from memtools.errors import ConfigError
from memtools.scopes._task_set import abandon

# The most thorough first.
_CLOSE_METHODS: Final = ("shutdown", "aclose", "close", "stop", "clear")

# Iterations of the event loop, after the deadline, in which a cancelled task may still end.
_CYCLES_AFTER_CANCEL: Final = 5
_CYCLES_AFTER_CLOSE_CANCEL: Final = 100  # a resource may have to close its own, each in some iterations

_log = logging.getLogger("memtools.lifecycle")


class OwnedResource:
    """One resource of a component.

    Attributes:
        resource: the object.
        label: its name in errors and logs.
        close: closes it by a deadline in seconds of the loop's clock, at once or when the result is awaited; None for a
            task.
        honours_deadline: whether it ends by the deadline without being cancelled, as a component does.
    """

    __slots__ = ("close", "honours_deadline", "label", "resource")

    def __init__(
        self, resource: object, label: str, close: Callable[[float], object] | None, *, honours_deadline: bool = False
    ) -> None:
        self.resource = resource
        self.label = label
        self.close = close
        self.honours_deadline = honours_deadline


class Resources:
    """The resources of one component, in the order in which they were added.

    It has no reference to the component, so a running task does not keep the component alive, and the component's
    finaliser can warn about a missing shutdown.

    Attributes:
        failed: tasks that raised before the shutdown.
        is_closing: whether the shutdown has started.
    """

    __slots__ = ("__weakref__", "_by_id", "_name", "failed", "is_closing")

    def __init__(self, name: str) -> None:
        self._name = name
        self._by_id: dict[int, OwnedResource] = {}  # by id: resources may be unhashable, or equal to each other
        self.failed = 0
        self.is_closing = False

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def tasks(self) -> int:
        """The number of tasks among the resources."""
        return sum(owned.close is None for owned in self._by_id.values())

    def add(
        self, resource: object, label: str, close: Callable[[float], object], *, honours_deadline: bool = False
    ) -> None:
        """Add a resource; one that was added before keeps its position."""
        if id(resource) not in self._by_id:
            self._by_id[id(resource)] = OwnedResource(resource, label, close, honours_deadline=honours_deadline)

    def add_task(self, task: "asyncio.Task[Any] | asyncio.Future[Any]") -> None:
        """Add a task; it is removed when it ends."""
        if id(task) in self._by_id:
            return
        self._by_id[id(task)] = OwnedResource(task, _task_label(task), None)
        task.add_done_callback(self._on_done)

    def remove(self, resource: object) -> None:
        """Remove a resource without closing it; do nothing if it was not added."""
        self._by_id.pop(id(resource), None)

    def pop(self) -> list[OwnedResource]:
        """Remove and return what was added last: one resource, or all tasks that were added in a row."""
        popped: list[OwnedResource] = []
        while self._by_id:
            key, last = next(reversed(self._by_id.items()))
            if popped and last.close is not None:
                break
            popped.append(self._by_id.pop(key))
            if last.close is not None:
                break
        return popped

    def _on_done(self, task: "asyncio.Future[Any]") -> None:
        if self._by_id.pop(id(task), None) is None or task.cancelled():
            return
        error = task.exception()
        if error is None or self.is_closing:
            return
        self.failed += 1
        # Reported at once, where the program handles such errors. No reference to the task is kept.
        task.get_loop().call_exception_handler(
            {"message": f"{_task_label(task)} of {self._name} failed", "exception": error, "task": task}
        )


def is_task(resource: object) -> "TypeGuard[asyncio.Future[Any]]":
    """Return whether `resource` is a task or a future of asyncio."""
    return isinstance(resource, asyncio.Future)


def closer_of(resource: object, close: Callable[[Any], object] | None) -> Callable[[float], object]:
    """Return the function that closes `resource`: `close`, or the first of its methods that closes.

    Any: `close` takes the resource, whose type the caller knows.

    Raises:
        ConfigError: if the resource has no such method, or `close` cannot be called.
    """
    if close is not None:
        if not callable(close):
            raise ConfigError("close", close, "a callable that takes the resource")
        return lambda _: close(resource)
    if isinstance(resource, Executor):
        # A pool of memtools ends its running calls, too, when the deadline cancels its `aclose`.
        aclose = getattr(resource, "aclose", None)
        return (lambda _: aclose()) if callable(aclose) else (lambda _: shut_down_pool(resource))
    for name in _CLOSE_METHODS:
        if callable(getattr(resource, name, None)):
            # Looked up again at the end: the method may be replaced until then.
            return partial(_call, resource, name)
    raise ConfigError("resource", resource, f"an object with one of the methods {', '.join(_CLOSE_METHODS)}, or close=")


def shut_down_pool(pool: Executor) -> "asyncio.Future[None]":
    """Start to shut down `pool`; the future is done when all of its running calls have ended.

    Calls that have not started are cancelled. `await pool.shutdown(wait=True)` would block the whole event loop, and
    then fail, because it returns None. The waiting is done in a thread of its own and not in the loop's pool:
    `asyncio.run` would wait for that one beyond the deadline.

    Raises:
        RuntimeError: when no thread can be started.
    """
    return call_in_own_thread(lambda: pool.shutdown(wait=True, cancel_futures=True), name="memtools pool shutdown")


class Shutdown:
    """One shutdown of a component: every resource is closed, whatever fails.

    After the deadline, or a cancellation of the caller, each remaining resource is closed without waiting for it.

    Args:
        name: the component's name.
        grace_s: how long the shutdown may take, in seconds; named in logs and errors.
        deadline: when it has to end, in seconds of the loop's clock.
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

    async def close_all(self, resources: Resources) -> None:
        """Close all resources; never raises."""
        while popped := resources.pop():
            if popped[0].close is None:
                await self._cancel_tasks(popped)
            else:
                await self._close_resource(popped[0])

    def raise_errors(self) -> None:
        """Raise the errors of the shutdown, if there were any.

        Raises:
            SystemExit: or KeyboardInterrupt, if closing a resource raised it.
            CancelledError: if the caller was cancelled meanwhile.
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

    async def _cancel_tasks(self, popped: list[OwnedResource]) -> None:
        # A task that calls the shutdown of its own component ends by itself.
        labels = {
            cast("asyncio.Future[Any]", owned.resource): owned.label
            for owned in popped
            if owned.resource is not self._caller
        }
        for future in labels:
            future.cancel()
        running = await self._wait(set(labels), _CYCLES_AFTER_CANCEL)

        for future, label in labels.items():
            if future not in running:
                self._record_result(future, label)
        if running:
            tasks = [task for task in running if isinstance(task, asyncio.Task)]
            abandon(self._name, [(task.get_name(), task) for task in tasks], self._grace_s)

    async def _close_resource(self, owned: OwnedResource) -> None:
        try:
            closing = owned.close(self._deadline) if owned.close is not None else None
        except BaseException as error:
            self._record_error(error, owned.label)
            return
        if not isinstance(closing, Awaitable):
            return

        future = asyncio.ensure_future(_awaited(cast("Awaitable[object]", closing)))
        if owned.honours_deadline:
            await self._wait_for_child(future)
            self._record_result(future, owned.label)
            return
        running = await self._wait({future}, _CYCLES_AFTER_CANCEL)
        if running:
            future.cancel()
            running = await self._wait({future}, _CYCLES_AFTER_CLOSE_CANCEL)
        if running:
            abandon(self._name, [(owned.label, future)], self._grace_s)
        if running or future.cancelled():
            text = f"{owned.label} of {self._name} did not end within {self._grace_s:.1f} s"
            self._record_error(TimeoutError(text), owned.label)
        else:
            self._record_result(future, owned.label)

    async def _wait_for_child(self, future: "asyncio.Future[Any]") -> None:
        # A child component has the same deadline, and ends some iterations of the loop after it at the latest.
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as cancelled:
                self._escalate(cancelled)
                future.cancel()

    async def _wait(self, futures: "set[asyncio.Future[Any]]", cycles: int) -> "set[asyncio.Future[Any]]":
        running = futures
        try:
            if futures and (seconds := self._deadline - self._loop.time()) > 0:
                running = (await asyncio.wait(futures, timeout=seconds))[1]
        except asyncio.CancelledError as cancelled:
            self._escalate(cancelled)
        for _ in range(cycles):
            running = {future for future in running if not future.done()}
            if not running:
                break
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                self._escalate(cancelled)
        return {future for future in running if not future.done()}

    def _escalate(self, cancelled: asyncio.CancelledError) -> None:
        # The caller was cancelled: the remaining resources are closed without waiting for them.
        self._cancelled = cancelled
        self._deadline = self._loop.time()

    def _record_result(self, future: "asyncio.Future[Any]", label: str) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._record_error(error, label)

    def _record_error(self, error: BaseException, label: str) -> None:
        if not isinstance(error, Exception):
            self._exit = self._exit or error
            return
        error.add_note(f"while {label} of {self._name} was closed")
        self._errors.append(error)


def _call(resource: object, name: str, _deadline: float) -> object:
    closing: object = getattr(resource, name)()
    return closing


def _task_label(task: object) -> str:
    return f"task {getattr(task, 'get_name', lambda: 'future')()}"


def _awaited(closing: Awaitable[object]) -> "Coroutine[Any, Any, object]":
    async def wait() -> object:
        return await closing

    return wait()
