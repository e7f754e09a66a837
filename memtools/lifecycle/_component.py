"""A part of a service that owns tasks, pools, caches and other parts, and ends them: `Component`.

Covers: owning, the shutdown, the finaliser that tells of one that never was. Leaves to others: how a thing ends
(`_belongings`), ending all in time (`_ending`).
"""

import logging
import warnings
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from memtools._records import as_dict, record
from memtools.errors import ConfigError, ScopeClosed
from memtools.lifecycle._teardown import Belongings, end_of, is_task
from memtools.lifecycle._weak_parent import WeakParent
from memtools.scopes._memory_scope import parse_name
from memtools.units import parse_seconds

if TYPE_CHECKING:
    import asyncio


# What a component owns and how its tasks fared, as one frozen record.


@record
class ComponentStatistics:
    """What a component owns, at one moment.

    Attributes:
        name: the component's name.
        state: `"open"`, `"shutting down"` or `"ended"`.
        tasks: its tasks that have not ended.
        owned: the other things that it owns: pools, caches, children.
        failed: tasks of it that raised, before it was shut down.
    """

    name: str
    state: str
    tasks: int
    owned: int
    failed: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


T = TypeVar("T")

_OPEN: Final = "open"
_SHUTTING_DOWN: Final = "shutting down"
_ENDED: Final = "ended"

_log = logging.getLogger("memtools.lifecycle")


class Component:
    """Owns tasks, pools, caches and children, and ends them in reverse order.

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
        name: what logs and errors call it; by default the name of its class.
        grace: seconds that the whole shutdown may take, children included.

    Attributes:
        parent: the component that owns it, held weakly; None where there is none.

    Raises:
        ConfigError: for an argument that makes no sense.

    Threads: belongs to one event loop, and to the thread that this runs in.
    """

    parent: WeakParent["Component"] = WeakParent()

    def __init__(self, name: str | None = None, *, grace: float = 5.0) -> None:
        self._name = type(self).__qualname__ if name is None else parse_name(name)
        self._grace_s = parse_seconds(grace, name="grace")
        self._state = _OPEN
        self._ended: asyncio.Event | None = None
        self._belongings = Belongings(self._name)

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        return self._name

    def own(self, thing: T, *, close: Callable[[T], object] | None = None) -> T:
        """Take care of the end of `thing`, and return it.

        It is held until the shutdown, and then ended by `close(thing)`, or else by the first of the methods `shutdown`,
        `aclose`, `close`, `stop` and `clear` that it has; what that returns is awaited where it can be. Pools of
        `concurrent.futures` are waited for off the loop, and what they have not begun is cancelled. Tasks are
        cancelled. Another component becomes a child.

        Raises:
            ConfigError: for a thing that cannot be ended, and for a component that has another parent or is above this.
            ScopeClosed: when the shutdown has begun; the thing is left to the caller.
        """
        self._check_open()
        given: object = thing
        if is_task(given):
            self._belongings.add_task(given)
        elif isinstance(given, Component) and close is None:
            self._adopt(given)
        else:
            self._belongings.add(given, type(given).__qualname__, end_of(given, close))
        return thing

    def release(self, thing: object) -> None:
        """Leave the end of `thing` to others; nothing happens where it is not owned."""
        self._belongings.drop(thing)
        if isinstance(thing, Component) and thing.parent is self:
            thing.parent = None

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> "asyncio.Task[T]":
        """Start a task that is held until it ends, and cancelled by the shutdown.

        One that fails is told to the loop's exception handler at once; the component goes on.

        Raises:
            ScopeClosed: when the shutdown has begun; the coroutine is closed.
        """
        import asyncio

        try:
            self._check_open()
            task = asyncio.get_running_loop().create_task(coro, name=name)
        except BaseException:
            coro.close()
            raise
        self._belongings.add_task(task)
        return task

    async def shutdown(self) -> None:
        """End everything that it owns, the latest first, within `grace` seconds for all of it.

        A second call waits for the same end. What does not end in time is cancelled, named and left. A task of the
        component that calls it is not cancelled. When the caller is cancelled, the rest is ended without waiting, and
        the cancellation goes on.

        Raises:
            ExceptionGroup: of what failed on the way, when everything else has been ended.
        """
        import asyncio

        await self._end_by(asyncio.get_running_loop().time() + self._grace_s)

    def statistics(self) -> ComponentStatistics:
        """Return what it owns now."""
        tasks = self._belongings.tasks
        return ComponentStatistics(
            self._name, self._state, tasks, len(self._belongings) - tasks, self._belongings.failed
        )

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit):
            return  # torn down from outside, a block may not wait: the finaliser tells of it
        try:
            await self.shutdown()
        except ExceptionGroup:
            if error is None:
                raise
            _log.exception("%s did not shut down cleanly; the block's own exception goes first", self._name)

    def __repr__(self) -> str:
        tasks = self._belongings.tasks
        return (
            f"<{type(self).__name__} {self._name!r} {self._state} tasks={tasks} owned={len(self._belongings) - tasks}>"
        )

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # The argument: at the end of the interpreter the module may be gone before the object.
        belongings: Belongings | None = getattr(self, "_belongings", None)
        if belongings and self._state == _OPEN:
            _warn(
                f"{self._name} was never shut down: it has {belongings.tasks} tasks and "
                f"{len(belongings) - belongings.tasks} other things; use it in an `async with`, or await shutdown()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _check_open(self) -> None:
        if self._state != _OPEN:
            reason = "it is shutting down" if self._state == _SHUTTING_DOWN else "it has been shut down"
            raise ScopeClosed(self._name, reason)

    def _adopt(self, child: "Component") -> None:
        above: Component | None = self
        while above is not None:
            if above is child:
                raise ConfigError("thing", child, f"a component that does not stand above {self._name}")
            above = above.parent
        if child.parent not in (None, self):
            raise ConfigError("thing", child, "a component that has no other parent: disown it there first")
        child.parent = self
        self._belongings.add(child, child.name, child._end_by, is_punctual=True)

    async def _end_by(self, deadline: float) -> None:
        import asyncio

        from memtools.lifecycle._teardown import Ending  # it knows asyncio, which is loaded by whoever runs a loop

        if self._state != _OPEN:
            if self._ended is not None:
                await self._ended.wait()
            return
        self._state = _SHUTTING_DOWN
        self._belongings.is_ending = True
        ended = self._ended = asyncio.Event()
        ending = Ending(self._name, self._grace_s, deadline)
        try:
            await ending.end_all(self._belongings)
        finally:
            self._state = _ENDED
            ended.set()
            parent = self.parent
            if parent is not None:
                parent.release(self)
        ending.raise_what_failed()
