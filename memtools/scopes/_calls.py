"""Calls as scopes: open an owner, run the call, close the owner.

Plain calls, coroutines, generators and asynchronous generators are each charged for their own steps only. A coroutine
gets a tracker of its own, which only opens the owner where the task is tracked already; a generator, which its consumer
suspends, switches the current owner at each step.

What a function is marked as does not tell what its call returns. So the result of a plain call is looked at: where it
stands for work that is still to be done, as a coroutine or a generator does, the owner stays open until that work ends.
"""

import contextlib
import functools
import sys
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from math import inf
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, TracebackType, coroutine
from typing import Any, Final, Generic, Self, TypeVar, cast

from memtools._records import record
from memtools.errors import BudgetExceeded, ConfigError
from memtools.ledger import Budget, Meter, Owner, active_owner, choose_meter
from memtools.ledger._context import Suspension, current_task, is_failure
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import Kind, ThreadSlot

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")

_CO_ITERABLE_COROUTINE: Final = 0x100  # inspect.CO_ITERABLE_COROUTINE: what `types.coroutine` marks a generator with


class _PostponedEnds(deque["tuple[CallOptions, Owner, BaseException | None]"]):
    def __reduce__(self) -> str:  # type: ignore[override]  # a global name: this process's own, wherever it is unpickled
        return "_postponed_ends"


# Calls that ended where the stack had no room left to close their owner. `append` and `popleft` take one step each.
_postponed_ends = _PostponedEnds()
postpone_end = _postponed_ends.append


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
        on_result: called with the result of a plain call or a coroutine, before `on_end`.
    """

    name: str
    kind: Kind
    meter: Meter
    budget: Budget | None = None
    include_children: bool = True
    is_stacked: bool = False
    on_end: Callable[[Owner, BaseException | None], object] | None = None
    on_result: Callable[[Any], object] | None = None  # Any: what the function returns

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

    def options_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:  # noqa: ARG002  # a decorator's own may
        """Return the options of a call with these arguments: the same for all."""
        return self

    def end(self, owner: Owner, error: BaseException | None) -> None:
        """Close the owner and call `on_end`; a call that was cancelled or closed has not failed."""
        if _postponed_ends:
            _end_postponed()
        self.end_now(owner, error)

    def end_now(self, owner: Owner, error: BaseException | None) -> None:
        """Do so without a look at the calls whose end was postponed."""
        close_owner(owner, failed=is_failure(error))
        if self.on_end is not None:
            self.on_end(owner, error)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # With a function that is pickled by value. The meter by its name: what it counts is this process's.
        meter = self.meter.name
        return _restore, (
            self.name, self.kind, meter, self.budget, self.include_children, self.is_stacked, self.on_end,
            self.on_result,
        )  # fmt: skip


def _restore(name: str, kind: Kind, meter: str, *rest: Any) -> CallOptions:
    try:
        chosen = choose_meter(meter)
    except ConfigError:  # the extension was not built there
        chosen = choose_meter(None)
    return CallOptions(name, kind, chosen, *rest)


def _end_postponed() -> None:
    with contextlib.suppress(IndexError):
        while True:
            options, owner, error = _postponed_ends.popleft()
            try:
                if not owner.ended:
                    # As failed, so that a budget is reported and not raised here, in another call.
                    options.end_now(owner, error or RecursionError())
            except RecursionError:
                _postponed_ends.appendleft((options, owner, error))
                raise


def finish(options: CallOptions, owner: Owner, result: Any) -> Any:
    """End a plain call that has returned `result`, or go on with what is still to be done for that result.

    Any: the result comes out as it came in, or as an object of the same kind whose steps are charged.

    - A coroutine, a generator or an asynchronous generator: its steps, until it ends.
    - A context manager that contextlib has made of a generator function: entering and leaving it.
    - An object of another class that can be awaited, or is an asynchronous context manager, and nothing else.

    A task or a future is work that goes on by itself: the call has ended, and its figures say that they are not exact.
    So do those of a call that returns an object which has further special methods: an object in its place would lack
    them.
    """
    kind = cast("Any", type(result))
    follow = _FOLLOWED_TYPES.get(kind)
    if follow is None and (hasattr(kind, "__await__") or hasattr(kind, "__aenter__")):
        is_future = hasattr(result, "_asyncio_future_blocking")
        if is_future or sys.getrefcount(result) <= _REFERENCES_TO_NEW:
            if not is_future and _has_only_followed_methods(kind):
                follow = _FollowedObject
            elif not is_future or not result.done():
                owner.note = owner.note or f"what it returned goes on by itself: {kind.__qualname__}"
        # Else an object that other code holds, too, such as the one client of a service: no work of this call.
    if follow is None:
        if options.on_result is not None:
            options.on_result(result)
        options.end(owner, None)
        return result
    return follow(OpenCall(options, owner), result)


class OpenCall:
    """A call that has returned and whose owner, suspended, waits for what is still to be done.

    Dropped before that begins, it ends the call.
    """

    __slots__ = ("_is_begun", "_suspension", "options")

    def __init__(self, options: CallOptions, owner: Owner) -> None:
        self.options = options
        self._is_begun = False
        self._suspension = Suspension(owner, owner.parent)
        self._suspension.suspend()

    def begin(self) -> Suspension:
        """Make its owner the current one."""
        self._is_begun = True
        self._suspension.resume()
        return self._suspension

    def drop(self) -> None:
        """End the call, unless what it has returned has begun."""
        if not self._is_begun and not self._suspension.owner.ended:
            self.options.end(self._suspension.owner, GeneratorExit())

    __del__ = drop


class _FollowedCoroutine(TrackedCoroutine[T]):
    """A coroutine whose owner was opened by the call that has returned it."""

    __slots__ = ("_call",)

    _call: OpenCall

    def follow(self, call: OpenCall) -> Self:
        """Have it run for `call`."""
        self._call = call
        return self

    def _start(self, slot: ThreadSlot) -> None:  # noqa: ARG002  # the suspension knows the slot
        self.task = current_task()
        owner = self.owner = self._call.begin().owner
        owner.tracker = weakref.ref(self)
        owner.steps_at_open = self.steps - 1  # the present step counts


def _follow_steps(call: OpenCall, inner: Coroutine[Any, Any, Any]) -> _FollowedCoroutine[Any]:
    options = call.options
    return _FollowedCoroutine[Any](inner, options.meter, kind=options.kind, on_end=options.on_end).follow(call)


def _follow_coroutine(call: OpenCall, inner: Any) -> Any:
    return copy_name(inner, _follow_steps(call, inner))


def _follow_generator(call: OpenCall, inner: Any) -> Any:
    is_awaitable = inner.gi_code.co_flags & _CO_ITERABLE_COROUTINE
    run = generate_awaitable if is_awaitable else generate
    return copy_name(inner, run(call.options, inner, call))


def _follow_async_generator(call: OpenCall, inner: Any) -> Any:
    return copy_name(inner, generate_async(call.options, inner, call))


def _follow_context_manager(call: OpenCall, manager: Any) -> Any:
    """Have the generator behind a context manager of contextlib followed; the manager is the same object."""
    options, make = call.options, manager.func
    is_async = type(manager.gen) is AsyncGeneratorType
    run: Callable[..., Any] = generate_async if is_async else generate

    def make_followed(*args: Any, **kwargs: Any) -> Any:
        call.drop()  # the manager itself is not entered: it makes a further one for each call of what it decorates
        inner = make(*args, **kwargs)
        return copy_name(inner, run(options, inner))

    manager.gen = copy_name(manager.gen, run(options, manager.gen, call))
    manager.func = make_followed
    return manager


# contextlib's own two classes; the names are private, and have been there since Python 3.2 and 3.7.
_MANAGERS: Final = [getattr(contextlib, f"_{kind}GeneratorContextManager", None) for kind in ("", "Async")]
_FOLLOWED_TYPES: Final[dict[Any, Callable[[OpenCall, Any], Any]]] = {
    CoroutineType: _follow_coroutine,
    TrackedCoroutine: _follow_coroutine,
    _FollowedCoroutine: _follow_coroutine,
    GeneratorType: _follow_generator,
    AsyncGeneratorType: _follow_async_generator,
    **{manager: _follow_context_manager for manager in _MANAGERS if manager is not None},
}


# Special methods that an object may have to be followed; a proxy of it answers what else it is asked, or need not.
_FOLLOWED_METHODS: Final = frozenset({"__await__", "__aenter__", "__aexit__"})
_OTHER_METHODS: Final = frozenset({
    "__init__", "__new__", "__del__", "__repr__", "__init_subclass__", "__class_getitem__", "__getattr__",
    "__getattribute__", "__setattr__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__",
    "__class__", "__subclasshook__", "__dir__", "__sizeof__",
})  # fmt: skip


@functools.lru_cache(maxsize=256)
def _has_only_followed_methods(cls: Any) -> bool:
    names = {name for name in dir(cls) if getattr(cls, name, None) is not getattr(object, name, None)}
    special = {name for name in names if name.startswith("__") and callable(getattr(cls, name, None))}
    return special <= _FOLLOWED_METHODS | _OTHER_METHODS


class _FollowedObject:
    """An awaitable or asynchronous context manager that a call has returned, and its owner with it.

    What it is asked for, it asks the object.
    """

    __slots__ = ("__weakref__", "_call", "_inner")

    def __init__(self, call: OpenCall, inner: Any) -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_inner", inner)

    @property
    def __class__(self) -> Any:
        return cast("Any", type(_inner_of(self)))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("__class__ of an object that is followed cannot be set")

    def __getattr__(self, name: str) -> Any:
        return getattr(_inner_of(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_inner_of(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_inner_of(self), name)

    def __repr__(self) -> str:
        return repr(_inner_of(self))

    def __await__(self) -> Any:
        inner = _inner_of(self)
        return _follow_steps(_call_of(self), _await(inner)).__await__()

    async def __aenter__(self) -> Any:
        suspension = _call_of(self).begin()
        suspension.suspend()
        try:
            return await _TrackedAwait(suspension, _await(_inner_of(self).__aenter__()))
        except BaseException as error:
            suspension.resume()
            _call_of(self).options.end(suspension.owner, error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        suspension, options = _call_of(self).begin(), _call_of(self).options
        suspension.suspend()
        try:
            is_handled = await _TrackedAwait(suspension, _await(_inner_of(self).__aexit__(kind, error, trace)))
        except BaseException as failure:
            suspension.resume()
            options.end(suspension.owner, failure)
            raise
        suspension.resume()
        options.end(suspension.owner, None if is_handled else error)
        return is_handled


def _inner_of(followed: _FollowedObject) -> Any:
    return object.__getattribute__(followed, "_inner")


def _call_of(followed: _FollowedObject) -> OpenCall:
    call: OpenCall = object.__getattribute__(followed, "_call")
    return call


def _count_references() -> int:
    # The way that the result of a call takes, with both its `try`: how many references that makes differs between
    # versions of Python, and Python 3.14 makes one more where a local variable was bound in a `try`.
    def finish(options: object, owner: object, result: object) -> int:  # noqa: ARG001
        return sys.getrefcount(result)

    try:
        result = object()
    except BaseException:
        raise
    try:
        return finish(None, None, result)
    except RecursionError:
        raise


_REFERENCES_TO_NEW: Final = _count_references()


def track_coroutine(options: CallOptions, inner: Coroutine[Any, Any, T] | None) -> TrackedCoroutine[T]:
    """Return a coroutine that runs `inner`, charged from its first step on; None where it only serves `copy_for`."""
    if inner is not None:
        inner = ensure_coroutine(inner)
        if options.on_result is not None:
            inner = _passing_result(inner, options.on_result)
    return TrackedCoroutine(
        inner,
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


async def _passing_result(inner: Awaitable[T], on_result: Callable[[T], object]) -> T:
    result = await inner
    on_result(result)
    return result


def generate(options: CallOptions, inner: Generator[Y, S, T], call: OpenCall | None = None) -> Generator[Y, S, T]:
    """Run a generator; what its consumer does between the steps is not charged to it.

    Args:
        options: how its owner is opened and closed.
        inner: the generator.
        call: the call that has returned it, where that has opened the owner already.
    """
    suspension = _begin(options, call)
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
            thrown = thrown or _exceeded_budget(suspension.owner)
            suspension.resume()
    except BaseException as error:
        suspension.resume()
        options.end(suspension.owner, error)
        raise
    options.end(suspension.owner, None)
    return result


# `types.coroutine` marks the function that it is given, hence the copy.
generate_awaitable = coroutine(FunctionType(generate.__code__, globals(), "generate", generate.__defaults__))


async def generate_async(
    options: CallOptions, inner: AsyncGenerator[Y, S], call: OpenCall | None = None
) -> AsyncGenerator[Y, S]:
    """Run an asynchronous generator; neither its consumer nor other tasks are charged to it.

    The arguments are those of `generate`.
    """
    suspension = _begin(options, call)
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
                exceeded = _exceeded_budget(suspension.owner)
                step = inner.asend(sent) if exceeded is None else inner.athrow(exceeded)
                del exceeded
    except BaseException as error:
        suspension.resume()
        options.end(suspension.owner, error)
        raise
    suspension.resume()
    options.end(suspension.owner, None)


def _begin(options: CallOptions, call: OpenCall | None) -> Suspension:
    if call is not None:
        return call.begin()
    active_before = active_owner()
    return Suspension(options.open(), active_before)


def _exceeded_budget(owner: Owner) -> BudgetExceeded | None:
    """Return what is to be raised in the next step, where a step has taken the owner over its budget."""
    budget = owner.budget
    if budget is None or owner.limit_bytes_in_flight == inf or (used := owner.peak_bytes) <= budget.limit_bytes:
        return None
    return budget.report_exceeded(owner, used, in_flight=True)


def raise_if_exceeded(owner: Owner) -> None:
    """Raise BudgetExceeded before the next step, where a step has taken the owner over its budget."""
    exceeded = _exceeded_budget(owner)
    if exceeded is not None:
        raise exceeded


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
            else:
                thrown = _exceeded_budget(self._suspension.owner)
