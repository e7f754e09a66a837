"""Follow every task of an event loop: `install()`.

Covers: the task factory that puts each new task under a driver, around a factory that is there; the loop's executor
calls, so that `to_thread` brings its owner along; doing so for every loop of a program (`python -m memtools run`).
Leaves to others: the driver itself (`_driver`), carrying (`_carrying`).
"""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from memtools.errors import ConfigError
from memtools.ledger._arrays import begin_to_count, end_to_count
from memtools.ledger._carrying import carry
from memtools.ledger._driver import UNUSED, Driven, can_be_driven
from memtools.ledger._meters import Meter, choose_meter, native_reason

if TYPE_CHECKING:
    import asyncio

    Loop: TypeAlias = asyncio.AbstractEventLoop

Factory: TypeAlias = Callable[..., Any]  # Any: what a factory takes and makes differs from Python to Python


class Installation:
    """What `install()` did to one loop; undone by `close()` or at the end of a `with`.

    Closing takes the factory back only if nobody has set another one since.
    """

    def __init__(self, loop: "Loop | None", meter: Meter, *, numpy: bool = False) -> None:
        self._loop = loop
        self._meter = meter
        self._numpy = numpy
        self._inner: Factory | None = loop.get_task_factory() if loop is not None else None
        self._closed = False
        self._follow = Driven(UNUSED, meter, name="", kind="task").following
        if numpy:
            begin_to_count()
        meter.hold()
        if loop is None:
            return
        self._run_in_executor = loop.run_in_executor
        loop.set_task_factory(self.make_task)
        # An attribute of this one loop object, not of its class.
        loop.run_in_executor = cast("Any", self._run_carried)  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave the loop as it was found; tasks that are followed already stay so. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            if self._loop.get_task_factory() == self.make_task:
                self._loop.set_task_factory(self._inner)
            if self._loop.run_in_executor == self._run_carried:
                del self._loop.run_in_executor
        if self._numpy:
            end_to_count()
        self._meter.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "active"
        return f"<Installation {state} meter={self._meter.name}>"

    def make_task(self, loop: "Loop", coro: Any, **options: Any) -> Any:
        """Make a task whose steps are followed: the task factory."""
        # What is no coroutine is refused by the task, in its own words.
        if not self._closed and can_be_driven(coro):
            coro = self._follow(coro)
        if self._inner is not None:
            return self._inner(loop, coro, **options)
        return sys.modules["asyncio"].Task(coro, loop=loop, **options)

    def _run_carried(self, executor: Any, function: Callable[..., Any], *args: Any) -> Any:
        # A process pool pickles what it is given, and no owner could follow into another process.
        if executor is None or _is_thread_pool(executor):
            function = carry(function)
        return self._run_in_executor(executor, function, *args)


def install(loop: "Loop | None" = None, *, meter: str | None = None, numpy: bool = False) -> Installation:
    """Give every task that this loop creates from now on an account of its own, whoever creates it.

    A task is called by its name, or by its coroutine where it has only a number for a name. Calls of
    `asyncio.to_thread` and of thread pools through the loop are charged to the task that makes them. A task factory
    that is there goes on making the tasks.

    Args:
        loop: the event loop; by default the running one.
        meter: who counts; by default `MEMTOOLS_METER`, else the default meter.
        numpy: count what numpy's arrays hold, too, by a handler of numpy's own kind (native meter only): in this
            context and those copied from it, and wherever an owner is opened. May be asked for without a loop.

    Raises:
        ConfigError: without a loop, unless it is for numpy; where the loop has been installed on already; for numpy
            with a meter that cannot count its arrays.
        MissingExtraError: for numpy where it is not installed.
    """
    chosen = choose_meter(meter)
    if numpy and chosen.name != "native":
        why = native_reason() or f"the meter is {chosen.name!r}"
        raise ConfigError("numpy", numpy, f"it with meter='native', the only one that can count arrays; here {why}")
    if loop is None:
        asyncio = sys.modules.get("asyncio")
        loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is None and not numpy:
        raise ConfigError("loop", loop, "an event loop, or call it where one is running")
    if loop is not None and getattr(loop.get_task_factory(), "__func__", None) is Installation.make_task:
        raise ConfigError("loop", loop, "a loop that memtools has not been installed on already")
    return Installation(loop, chosen, numpy=numpy)


def _is_thread_pool(executor: object) -> bool:
    module = sys.modules.get("concurrent.futures.thread")
    return module is not None and isinstance(executor, module.ThreadPoolExecutor)
