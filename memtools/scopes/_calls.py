"""A call as a scope: open an owner for it, call through, end the owner.

Covers: plain calls, coroutines, generators and asynchronous generators, each charged for its own steps only.
Leaves to others: what becomes of the usage (`Plan.on_end`), wrapping functions (`memtools.decorators`).

A coroutine that runs under a driver already only opens its owner there; otherwise it brings a driver of its own. What
is suspended by its consumer (the generators) takes its turn at each step.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar, cast

from memtools.ledger import (
    Budget,
    Driven,
    Kind,
    Meter,
    Owner,
    Turn,
    active_owner,
    current_driver,
    is_failure,
    open_owner,
    settle_owner,
)
from memtools.records import record

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


@record
class Plan:
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

    def open(self, driver: "Driven[Any] | None" = None) -> Owner:
        """Open the owner here."""
        return open_owner(
            self.name,
            self.kind,
            meter=self.meter,
            include_children=self.include_children,
            budget=self.budget,
            driver=driver,
            is_layered=self.is_layered,
        )

    def end(self, owner: Owner, error: BaseException | None) -> None:
        """End the owner and tell `on_end`; cancelled or closed is no failure."""
        settle_owner(owner, failed=is_failure(error))
        if self.on_end is not None:
            self.on_end(owner, error)


def call(plan: Plan, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Call a plain function."""
    owner = plan.open()
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        plan.end(owner, error)
        raise
    plan.end(owner, None)
    return result


def follow(plan: Plan, inner: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return a coroutine that runs `inner`, charged from its first step on."""
    return _follow(plan, _Unbegun(inner))


class _Unbegun:
    """A coroutine that may never be awaited; then the one around it warns, and one warning is enough."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner: Coroutine[Any, Any, Any] | None = inner

    def begin(self) -> Coroutine[Any, Any, Any]:
        assert self._inner is not None  # begun once: a coroutine cannot be awaited twice
        inner, self._inner = self._inner, None
        return inner

    def __del__(self) -> None:
        if self._inner is not None:
            self._inner.close()


async def _follow(plan: Plan, unbegun: _Unbegun) -> Any:  # Any: what the coroutine returns, see `follow`
    inner = unbegun.begin()
    driver = current_driver()
    needs_driver = plan.meter.follows or (plan.budget is not None and plan.budget.hard)
    if driver is None and needs_driver:
        return await Driven(
            inner,
            plan.meter,
            name=plan.name,
            kind=plan.kind,
            budget=plan.budget,
            include_children=plan.include_children,
            is_layered=plan.is_layered,
            on_end=plan.on_end,
        )

    owner = plan.open(driver)
    try:
        result = await inner
    except BaseException as error:
        plan.end(owner, error)
        raise
    plan.end(owner, None)
    return result


def generate(plan: Plan, inner: Generator[Y, S, T]) -> Generator[Y, S, T]:
    """Run a generator; what its consumer does between the steps is not charged to it."""
    active_before = active_owner()
    turn = Turn(plan.open(), active_before)
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
            turn.give_back()
            try:
                sent = yield item
            except GeneratorExit:
                turn.take()
                inner.close()
                raise
            except BaseException as error:
                thrown = error
            turn.take()
    except BaseException as error:
        turn.take()
        plan.end(turn.owner, error)
        raise
    plan.end(turn.owner, None)
    return result


async def generate_async(plan: Plan, inner: AsyncGenerator[Y, S]) -> AsyncGenerator[Y, S]:
    """Run an asynchronous generator; neither its consumer nor other tasks are charged to it."""
    active_before = active_owner()
    turn = Turn(plan.open(), active_before)
    step: Awaitable[Y] = inner.__anext__()
    try:
        while True:
            turn.give_back()
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
        turn.take()
        plan.end(turn.owner, error)
        raise
    turn.take()
    plan.end(turn.owner, None)


def _advance(inner: Generator[Y, S, T], sent: S | None, thrown: BaseException | None) -> Y:
    try:
        return inner.send(cast("S", sent)) if thrown is None else inner.throw(thrown)
    finally:
        del thrown


class _Steps(Generic[T]):
    """An awaitable, each step of which takes the turn and gives it back."""

    __slots__ = ("_awaitable", "_turn")

    def __init__(self, turn: Turn, awaitable: Awaitable[T]) -> None:
        self._turn = turn
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, T]:  # Any: between the loop and what it resumes
        steps = self._awaitable.__await__()
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            self._turn.take()
            try:
                waits_for = _advance(steps, sent, thrown)
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                thrown = None
                self._turn.give_back()
            try:
                sent = yield waits_for
            except BaseException as error:  # GeneratorExit, too: the step that it closes is a charged one
                thrown = error
