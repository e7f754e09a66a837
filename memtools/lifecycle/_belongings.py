"""What one component owns, in order, and how each of it is ended.

Covers: tasks that are held until they end and whose failures are told at once; the way in which a thing ends, found
when it is given. Leaves to others: ending all in time (`_ending`).

It knows nothing of the component, so that tasks which run on do not keep that alive: its finaliser can still tell.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from memtools.errors import ConfigError
from memtools.lifecycle._pools import end_pool

if TYPE_CHECKING:
    import asyncio

# How things say that they end, the most thorough first.
_ENDS: Final = ("shutdown", "aclose", "close", "stop", "clear")


class Belonging:
    """One owned thing.

    Attributes:
        thing: the thing.
        label: what errors call it.
        end: ends it by a deadline in seconds of the loop's clock, now or when what it returns is awaited; None for a
            task.
        is_punctual: whether it keeps to the deadline by itself, as a component does.
    """

    __slots__ = ("end", "is_punctual", "label", "thing")

    def __init__(
        self, thing: object, label: str, end: Callable[[float], object] | None, *, is_punctual: bool = False
    ) -> None:
        self.thing = thing
        self.label = label
        self.end = end
        self.is_punctual = is_punctual


class Belongings:
    """The owned things of one component, in the order in which they came."""

    __slots__ = ("__weakref__", "_by_id", "_name", "failed", "is_ending")

    def __init__(self, name: str) -> None:
        self._name = name
        self._by_id: dict[int, Belonging] = {}  # the things may be unhashable, or equal to each other
        self.failed = 0
        self.is_ending = False

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def tasks(self) -> int:
        """How many of them are tasks."""
        return sum(belonging.end is None for belonging in self._by_id.values())

    def add(self, thing: object, label: str, end: Callable[[float], object], *, is_punctual: bool = False) -> None:
        """Own a thing; one that is owned already keeps its place."""
        if id(thing) not in self._by_id:
            self._by_id[id(thing)] = Belonging(thing, label, end, is_punctual=is_punctual)

    def add_task(self, task: "asyncio.Task[Any] | asyncio.Future[Any]") -> None:
        """Own a task until it ends."""
        if id(task) in self._by_id:
            return
        self._by_id[id(task)] = Belonging(task, _task_label(task), None)
        task.add_done_callback(self._on_done)

    def drop(self, thing: object) -> None:
        """Own it no more; nothing happens where it was not owned."""
        self._by_id.pop(id(thing), None)

    def take_last(self) -> list[Belonging]:
        """Give up what came last: one thing, or all tasks that came in a row."""
        taken: list[Belonging] = []
        while self._by_id:
            number, last = next(reversed(self._by_id.items()))
            if taken and last.end is not None:
                break
            taken.append(self._by_id.pop(number))
            if last.end is not None:
                break
        return taken

    def _on_done(self, task: "asyncio.Future[Any]") -> None:
        if self._by_id.pop(id(task), None) is None or task.cancelled():
            return
        error = task.exception()
        if error is None or self.is_ending:
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


def end_of(thing: object, close: Callable[[Any], object] | None) -> Callable[[float], object]:
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
        return lambda _: end_pool(thing)
    for name in _ENDS:
        if callable(getattr(thing, name, None)):
            # Asked for again in the end: the method of today may be replaced until then.
            return partial(_call, thing, name)
    raise ConfigError("thing", thing, f"a thing with one of the methods {', '.join(_ENDS)}, or close=")


def _call(thing: object, name: str, _deadline: float) -> object:
    ended: object = getattr(thing, name)()
    return ended


def _task_label(task: object) -> str:
    return f"task {getattr(task, 'get_name', lambda: 'future')()}"
