"""A call as a scope: open an owner for it, call through, end the owner.

Covers: plain calls, coroutines, generators and asynchronous generators, each charged for its own steps only.
Leaves to others: what becomes of the usage (`Plan.on_end`), wrapping functions (`memtools.decorators`).

A coroutine brings a driver of its own, which only opens the owner where another one follows the task already. What is
suspended by its consumer (the generators) takes its turn at each step.
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
    """How the owner of a call is opened and ended.

    Attributes:
        name: what reports call it.
        kind: `"call"` or `"scope"`.
        meter: who counts.
        budget: what it may use.
        include_children: whether owners below count into its figures.
        is_layered: whether the function is under a further decorator of ours: one call then, and not two.
        on_end: told when the owner has ended, and by which exception, None for a result; what it raises is raised in
            place of the result.
    """

    name: str
    kind: Kind
    meter: Meter
    budget: Budget | None = None
    include_children: bool = True
    is_layered: bool = False
    on_end: Callable[[Owner, BaseException | None], object] | None = None

    def open(self) -> Owner:
        """Open the owner here."""
        return open_owner(
            self.name,
            self.kind,
            meter=self.meter,
            include_children=self.include_children,
            budget=self.budget,
            is_stacked=self.is_layered,
        )

    def end(self, owner: Owner, error: BaseException | None) -> None:
        """End the owner and tell `on_end`; cancelled or closed is no failure."""
        close_owner(owner, failed=is_failure(error))
        if self.on_end is not None:
            self.on_end(owner, error)


def call(plan: CallOptions, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Call a plain function."""
    owner = plan.open()
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        plan.end(owner, error)
        raise
    plan.end(owner, None)
    return result


def track_coroutine(plan: CallOptions, inner: Coroutine[Any, Any, T] | None) -> TrackedCoroutine[T]:
    """Return a coroutine that runs `inner`, charged from its first step on; None where it only serves `copy_for`."""
    return TrackedCoroutine(
        None if inner is None else ensure_coroutine(inner),
        plan.meter,
        name=plan.name,
        kind=plan.kind,
        budget=plan.budget,
        include_children=plan.include_children,
        is_stacked=plan.is_layered,
        on_end=plan.on_end,
        nest_if_tracked=True,
    )


def coroutine_tracker(plan: CallOptions, function: Callable[..., Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return what follows each coroutine of `function` under its name: `follow()`, quicker where there are many.

    It takes what has a `send`; for other awaitables see `sendable()`. Any: what a function takes, sends and returns is
    between it and its callers.
    """
    following: Callable[[Any], Coroutine[Any, Any, Any]] = copy_name(function, track_coroutine(plan, None)).copy_for
    return following


def copy_name(function: Callable[..., Any], running: Any) -> Any:
    """Give a running call the name of its function: in task lists and in "was never awaited" stands the user's.

    Any: coroutines and generators of all kinds.
    """
    for name in ("__name__", "__qualname__"):
        if hasattr(function, name):
            setattr(running, name, getattr(function, name))
    return running


def ensure_coroutine(inner: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return a coroutine that awaits what a function has returned that is marked as a coroutine function."""
    return inner if hasattr(inner, "send") else _awaited(inner)


async def _awaited(inner: Awaitable[T]) -> T:
    return await inner


def generate(plan: CallOptions, inner: Generator[Y, S, T]) -> Generator[Y, S, T]:
    """Run a generator; what its consumer does between the steps is not charged to it."""
    active_before = active_owner()
    turn = Suspension(plan.open(), active_before)
    sent: S | None = None
    thrown: BaseException | None = None
    try:
        while True:
            try:
                item = next(inner) if sent is None and thrown is None else _advance(inner, sent, thrown)
            except StopIteration as end:
                result = cast("T", end.value)
                break
            finally:
                thrown = None  # or traceback, this frame and the exception would keep each other alive
            turn.suspend()
            try:
                sent = yield item
            except GeneratorExit:
                turn.resume()
                inner.close()
                raise
            except BaseException as error:
                thrown = error
            turn.resume()
    except BaseException as error:
        turn.resume()
        plan.end(turn.owner, error)
        raise
    plan.end(turn.owner, None)
    return result


async def generate_async(plan: CallOptions, inner: AsyncGenerator[Y, S]) -> AsyncGenerator[Y, S]:
    """Run an asynchronous generator; neither its consumer nor other tasks are charged to it."""
    active_before = active_owner()
    turn = Suspension(plan.open(), active_before)
    step: Awaitable[Y] = inner.__anext__()
    try:
        while True:
            turn.suspend()
            try:
                item = await _Steps(turn, step)
            except StopAsyncIteration:
                break
            del step  # it may hold an exception whose traceback holds this frame
            try:
                sent = yield item
            except GeneratorExit:
                await _Steps(turn, inner.aclose())
                raise
            except BaseException as error:
                step = inner.athrow(error)
            else:
                step = inner.asend(sent)
    except BaseException as error:
        turn.resume()
        plan.end(turn.owner, error)
        raise
    turn.resume()
    plan.end(turn.owner, None)


def _advance(inner: Generator[Y, S, T], sent: S | None, thrown: BaseException | None) -> Y:
    try:
        return inner.send(cast("S", sent)) if thrown is None else inner.throw(thrown)
    finally:
        del thrown


class _Steps(Generic[T]):
    """An awaitable, each step of which takes the turn and gives it back."""

    __slots__ = ("_awaitable", "_turn")

    def __init__(self, turn: Suspension, awaitable: Awaitable[T]) -> None:
        self._turn = turn
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, T]:  # Any: between the loop and what it resumes
        steps = self._awaitable.__await__()
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            self._turn.resume()
            try:
                waits_for = _advance(steps, sent, thrown)
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                thrown = None
                self._turn.suspend()
            try:
                sent = yield waits_for
            except BaseException as error:  # GeneratorExit, too: the step that it closes is a charged one
                thrown = error
