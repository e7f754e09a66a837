"""Components: parts of a service that own resources and close them."""

import asyncio
import logging
import os
import warnings
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from memtools._records import as_dict, record
from memtools.errors import ConfigError, ScopeClosed
from memtools.lifecycle._teardown import Resources, Shutdown, closer_of, is_task
from memtools.lifecycle._weak_parent import WeakParent
from memtools.scopes._memory_scope import parse_name
from memtools.units import parse_seconds

T = TypeVar("T")

_OPEN: Final = "open"
_SHUTTING_DOWN: Final = "shutting down"
_ENDED: Final = "ended"

_log = logging.getLogger("memtools.lifecycle")


@record
class ComponentStatistics:
    """What a component owns at one moment.

    Attributes:
        name: the component's name.
        state: `"open"`, `"shutting down"` or `"ended"`.
        tasks: its running tasks.
        owned: its other resources: pools, caches, child components.
        failed: its tasks that raised before the shutdown.
    """

    name: str
    state: str
    tasks: int
    owned: int
    failed: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


class Component:
    """Owns tasks, pools, caches and child components, and closes them in reverse order.

    ```python
    import asyncio

    class Prices(Component):
        def __init__(self) -> None:
            super().__init__("prices")
            self.latest = self.own({})  # cleared at the end
            self.create_task(self.refresh())

        async def refresh(self) -> None:
            while True:
                await asyncio.sleep(60)

    async def main() -> None:
        async with Prices() as prices:
            prices.latest["EUR"] = 1.0

    asyncio.run(main())
    ```

    Args:
        name: the name in logs and errors; by default that of the class.
        grace: seconds that the whole shutdown may take, child components included.

    Attributes:
        parent: the component that owns this one, held weakly; None if there is none.

    Raises:
        ConfigError: for an invalid argument.

    Threads: belongs to one event loop, and to the thread in which the loop runs.
    """

    parent: WeakParent["Component"] = WeakParent()

    def __init__(self, name: str | None = None, *, grace: float = 5.0) -> None:
        self._name = type(self).__qualname__ if name is None else parse_name(name)
        self._grace_s = parse_seconds(grace, name="grace")
        self._state = _OPEN
        self._pid = os.getpid()
        self._ended: asyncio.Event | None = None
        self._resources = Resources(self._name)

    @property
    def name(self) -> str:
        """The name in logs and errors."""
        return self._name

    def own(self, resource: T, *, close: Callable[[T], object] | None = None) -> T:
        """Close `resource` when this component shuts down; return it.

        The component holds it until the shutdown, and then calls `close(resource)`, or else the first of the methods
        `shutdown`, `aclose`, `close`, `stop` and `clear` that it has; an awaitable result is awaited. A thread waits
        for a pool of `concurrent.futures`, so that the loop goes on; its calls that have not started are cancelled.
        Tasks are cancelled. Another component becomes a child.

        Raises:
            ConfigError: for an object that cannot be closed, and for a component that has another parent or is an
                ancestor of this one.
            ScopeClosed: when the shutdown has started; the caller still has to close the object.
        """
        self._check_open()
        given: object = resource
        if is_task(given):
            self._resources.add_task(given)
        elif isinstance(given, Component) and close is None:
            self._own_child(given)
        else:
            self._resources.add(given, type(given).__qualname__, closer_of(given, close))
        return resource

    def release(self, resource: object) -> None:
        """Stop owning `resource`, without closing it; do nothing if it is not owned."""
        self._resources.remove(resource)
        if isinstance(resource, Component) and resource.parent is self:
            resource.parent = None

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> "asyncio.Task[T]":
        """Start a task that the component holds until it ends, and that the shutdown cancels.

        A task that fails is reported to the loop's exception handler at once; the component goes on.

        Raises:
            ScopeClosed: when the shutdown has started; the coroutine is closed.
        """
        try:
            self._check_open()
            task = asyncio.get_running_loop().create_task(coro, name=name)
        except BaseException:
            coro.close()
            raise
        self._resources.add_task(task)
        return task

    async def shutdown(self) -> None:
        """Close all resources, the latest first, within `grace` seconds for all of them.

        A second call waits for the same shutdown. A resource that does not close in time is cancelled, named in the log
        and abandoned. If a task of the component calls this, the task itself is not cancelled. If the caller is
        cancelled, the remaining resources are closed without waiting, and the cancellation propagates.

        Raises:
            ExceptionGroup: of all errors, when every resource has been closed.
        """
        await self._shut_down_by(asyncio.get_running_loop().time() + self._grace_s)

    def statistics(self) -> ComponentStatistics:
        """Return what the component owns now."""
        tasks = self._resources.tasks
        return ComponentStatistics(self._name, self._state, tasks, len(self._resources) - tasks, self._resources.failed)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit):
            return  # the coroutine is being closed, where it must not await: the finaliser warns
        try:
            await self.shutdown()
        except ExceptionGroup:
            if error is None:
                raise
            _log.exception("%s did not shut down cleanly; the exception of its block is raised instead", self._name)

    def __repr__(self) -> str:
        tasks = self._resources.tasks
        return (
            f"<{type(self).__name__} {self._name!r} {self._state} tasks={tasks} owned={len(self._resources) - tasks}>"
        )

    def __del__(self, _warn: Callable[..., None] = warnings.warn, _getpid: Callable[[], int] = os.getpid) -> None:
        # These are arguments because the modules may be gone before the object at interpreter exit.
        resources: Resources | None = getattr(self, "_resources", None)
        # The copy in a forked child is the parent's to shut down.
        if resources and self._state == _OPEN and self._pid == _getpid():
            _warn(
                f"{self._name} was never shut down: it has {resources.tasks} tasks and "
                f"{len(resources) - resources.tasks} other resources; use it in an `async with`, or await shutdown()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _check_open(self) -> None:
        if self._state != _OPEN:
            reason = "it is shutting down" if self._state == _SHUTTING_DOWN else "it has been shut down"
            raise ScopeClosed(self._name, reason)

    def _own_child(self, child: "Component") -> None:
        ancestor: Component | None = self
        while ancestor is not None:
            if ancestor is child:
                raise ConfigError("resource", child, f"a component that is not an ancestor of {self._name}")
            ancestor = ancestor.parent
        if child.parent not in (None, self):
            raise ConfigError("resource", child, "a component without another parent: call release() of that one first")
        child.parent = self
        self._resources.add(child, child.name, child._shut_down_by, honours_deadline=True)

    async def _shut_down_by(self, deadline: float) -> None:
        if self._state != _OPEN:
            if self._ended is not None:
                await self._ended.wait()
            return
        self._state = _SHUTTING_DOWN
        self._resources.is_closing = True
        ended = self._ended = asyncio.Event()
        shutdown = Shutdown(self._name, self._grace_s, deadline)
        try:
            await shutdown.close_all(self._resources)
        finally:
            self._state = _ENDED
            ended.set()
            parent = self.parent
            if parent is not None:
                parent.release(self)
        shutdown.raise_errors()
