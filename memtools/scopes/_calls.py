"""Calls as scopes: open an owner, run the call, close the owner.

Plain calls, coroutines, generators and asynchronous generators are each charged for their own steps only. A coroutine
gets a tracker of its own, which only opens the owner where the task is tracked already; a generator, which its consumer
suspends, switches the current owner at each step.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from memtools._records import record
from memtools.ledger import Budget, Meter, Owner, active_owner
from memtools.ledger._context import Suspension, is_failure
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import Kind

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


@record
class CallOptions:
    """How the owner of a call is opened and closed.

    Attributes:
        name: the name in reports.
        kind: `"call"` or `"scope"`.
        meter: the meter that measures the owner.
        budget: the budget of the owner, or None.
        include_children: whether the figures include those of the owners below.
        is_stacked: whether the function is decorated by memtools already: both decorators then count one call.
        on_end: called when the owner has ended, with the owner and the exception that ended it, or None; what it raises
            is raised in place of the result.
    """

    name: str
    kind: Kind
    meter: Meter
    budget: Budget | None = None
    include_children: bool = True
    is_stacked: bool = False
    on_end: Callable[[Owner, BaseException | None], object] | None = None

    def open(self) -> Owner:
        """Open the owner, below the current one."""
        return open_owner(
            self.name,
            self.kind,
            meter=self.meter,
            include_children=self.include_children,
            budget=self.budget,
            is_stacked=self.is_stacked,
        )

    def end(self, owner: Owner, error: BaseException | None) -> None:
        """Close the owner and call `on_end`; a call that was cancelled or closed has not failed."""
        close_owner(owner, failed=is_failure(error))
        if self.on_end is not None:
            self.on_end(owner, error)


def call(options: CallOptions, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Call a plain function."""
    owner = options.open()
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        options.end(owner, error)
        raise
    options.end(owner, None)
    return result


def track_coroutine(options: CallOptions, inner: Coroutine[Any, Any, T] | None) -> TrackedCoroutine[T]:
    """Return a coroutine that runs `inner`, charged from its first step on; None where it only serves `copy_for`."""
    return TrackedCoroutine(
        None if inner is None else ensure_coroutine(inner),
        options.meter,
        name=options.name,
        kind=options.kind,
        budget=options.budget,
        include_children=options.include_children,
        is_stacked=options.is_stacked,
        on_end=options.on_end,
        nest_if_tracked=True,
    )


def coroutine_tracker(options: CallOptions, function: Callable[..., Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return what tracks each coroutine of `function`: `track_coroutine`, faster where there are many.

    It accepts what has a `send`; see `ensure_coroutine` for other awaitables. Any: what a function takes, sends and
    returns is not known here.
    """
    tracker = copy_name(function, track_coroutine(options, None))
    track: Callable[[Any], Coroutine[Any, Any, Any]] = tracker.copy_for
    return track


def copy_name(function: Callable[..., Any], running: Any) -> Any:
    """Give a running call the name of its function, which task lists and "was never awaited" then show.

    Any: coroutines and generators of all kinds.
    """
    for name in ("__name__", "__qualname__"):
        if hasattr(function, name):
            setattr(running, name, getattr(function, name))
    return running


def ensure_coroutine(inner: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return `inner`, or a coroutine that awaits it: a function that is marked as one may return any awaitable."""
    return inner if hasattr(inner, "send") else _await(inner)


async def _await(inner: Awaitable[T]) -> T:
    return await inner


def generate(options: CallOptions, inner: Generator[Y, S, T]) -> Generator[Y, S, T]:
    """Run a generator; what its consumer does between the steps is not charged to it."""
    active_before = active_owner()
    suspension = Suspension(options.open(), active_before)
    sent: S | None = None
    thrown: BaseException | None = None
    try:
        while True:
            try:
                item = next(inner) if sent is None and thrown is None else _send_or_throw(inner, sent, thrown)
            except StopIteration as end:
                result = cast("T", end.value)
                break
            finally:
                thrown = None  # otherwise its traceback, this frame and the exception would keep each other alive
            suspension.suspend()
            try:
                sent = yield item
            except GeneratorExit:
                suspension.resume()
                inner.close()
                raise
            except BaseException as error:
                thrown = error
            suspension.resume()
    except BaseException as error:
        suspension.resume()
        options.end(suspension.owner, error)
        raise
    options.end(suspension.owner, None)
    return result


async def generate_async(options: CallOptions, inner: AsyncGenerator[Y, S]) -> AsyncGenerator[Y, S]:
    """Run an asynchronous generator; neither its consumer nor other tasks are charged to it."""
    active_before = active_owner()
    suspension = Suspension(options.open(), active_before)
    step: Awaitable[Y] = inner.__anext__()
    try:
        while True:
            suspension.suspend()
            try:
                item = await _TrackedAwait(suspension, step)
            except StopAsyncIteration:
                break
            del step  # it may hold an exception whose traceback holds this frame
            try:
                sent = yield item
            except GeneratorExit:
                await _TrackedAwait(suspension, inner.aclose())
                raise
            except BaseException as error:
                step = inner.athrow(error)
            else:
                step = inner.asend(sent)
    except BaseException as error:
        suspension.resume()
        options.end(suspension.owner, error)
        raise
    suspension.resume()
    options.end(suspension.owner, None)


def _send_or_throw(inner: Generator[Y, S, T], sent: S | None, thrown: BaseException | None) -> Y:
    try:
        return inner.send(cast("S", sent)) if thrown is None else inner.throw(thrown)
    finally:
        del thrown


class _TrackedAwait(Generic[T]):
    """An awaitable during whose steps the owner of a suspension is the current one."""

    __slots__ = ("_awaitable", "_suspension")

    def __init__(self, suspension: Suspension, awaitable: Awaitable[T]) -> None:
        self._suspension = suspension
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, T]:  # Any: what the loop and the awaitable exchange
        steps = self._awaitable.__await__()
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            self._suspension.resume()
            try:
                waits_for = _send_or_throw(steps, sent, thrown)
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                thrown = None
                self._suspension.suspend()
            try:
                sent = yield waits_for
            except BaseException as error:  # GeneratorExit, too: the step that it closes is charged as well
                thrown = error
