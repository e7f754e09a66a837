"""The steps of a coroutine, from the loop's call to the coroutine and back, where they are not in C.

Covers: what happens at each step, as `native/driver.c` does it. Leaves to others, by calling up: what happens at the
first one and at the end, what is done about budgets (`_driver`).
"""

import re
from collections.abc import Callable, Coroutine, Generator
from operator import attrgetter
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeGuard, TypeVar, cast

from memtools.errors import BudgetExceeded
from memtools.ledger._context import (
    Slot,
    active_owner,
    current_task,
    current_tracker,
    get_active,
    give_turn,
    is_failure,
    per_thread,
)
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import Budget, Owner, native_seats
from memtools.ledger.meters._choose import Meter

if TYPE_CHECKING:
    from memtools.ledger._owner import Kind


# Follow a coroutine step by step, so that only its own steps are charged to its owners.
#
# Between two steps of a coroutine other tasks run. The driver sits between the event loop and the coroutine: at the start
# of a step it gives the turn to the owner that is active in the task's context, at the end it gives the turn back. One
# driver serves a whole task: scopes and decorated calls inside it only move the active owner.
#
# Covers: the first step, the end, budgets, what others see. Leaves to others: the way of a step to the coroutine and back
# (`native/driver.c`; `_steps` where that was not built).
#
# It is a coroutine to its loop (asyncio, uvloop, trio) and passes through what debuggers and reprs look at. What is
# thrown in, cancellation included, goes to the coroutine inside a charged step, and so does `close()`.

T = TypeVar("T")

_native = native_seats()


class PureSteps(Generic[T]):
    """The hot half of `TrackedCoroutine`; its arguments and attributes are explained there."""

    __slots__ = (
        "__name__", "__qualname__", "__weakref__",
        "_has_ended", "_inner", "_is_joined", "_meter", "_overrun", "_send", "_steps", "budget", "include_children",
        "is_layered", "joins", "kind", "name", "on_end", "owner", "task",
    )  # fmt: skip

    def __init__(
        self,
        inner: Coroutine[Any, Any, T],
        meter: Meter,
        *,
        name: str | None = None,
        kind: "Kind" = "task",
        budget: Budget | None = None,
        include_children: bool = True,
        is_layered: bool = False,
        on_end: "Callable[[Owner, BaseException | None], object] | None" = None,
        joins: bool = False,
    ) -> None:
        self._steps: float = 0.0  # a float, for the reason given in `_tally`
        self._has_ended = False
        self._is_joined = False
        self._inner = inner
        self._send = inner.send
        self.__qualname__: str = getattr(inner, "__qualname__", type(inner).__qualname__)
        self.__name__: str = getattr(inner, "__name__", self.__qualname__)
        self._meter = meter
        self._overrun: BudgetExceeded | None = None
        self.name: str | None = name
        self.kind: Kind = kind
        self.budget: Budget | None = budget
        self.include_children: bool = include_children
        self.is_layered: bool = is_layered
        self.on_end: Callable[[Owner, BaseException | None], object] | None = on_end
        self.joins: bool = joins
        self.owner: Owner | None = None
        self.task: object | None = None

    def following(self, inner: Coroutine[Any, Any, Any]) -> Self:
        """Return another one, for that coroutine, made as this one was."""
        made = type(self)(
            inner,
            self._meter,
            name=self.name,
            kind=self.kind,
            budget=self.budget,
            include_children=self.include_children,
            is_layered=self.is_layered,
            on_end=self.on_end,
            joins=self.joins,
        )
        if self.__qualname__ != getattr(self._inner, "__qualname__", self.__qualname__):
            made.__name__, made.__qualname__ = self.__name__, self.__qualname__  # names that it was given
        return made

    def send(self, value: Any) -> Any:
        """Run one step."""
        if self.joins and not self._steps and self._join():
            self._is_joined = True
            self._steps = 1.0
        if self._is_joined:
            return self._run_joined(self._send, value)

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = cast("TrackedCoroutine[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._begin(slot)
            result = self._send(value) if self._overrun is None else self._stop()
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as error:
            self._end(before, error)
            raise
        finally:
            slot.driver = driver_before

        self._suspend(slot, before)
        return result

    def throw(self, kind: Any, error: Any = None, trace: TracebackType | None = None) -> Any:
        """Throw into the coroutine, inside a charged step; cancellation passes through here."""
        if self.joins and not self._steps:
            self._is_joined = True  # it will never begin, so nobody is charged
            self._steps = 1.0
        if self._is_joined:
            thrown = (kind,) if error is None else (kind, error, trace)
            del kind, error, trace  # the same as below
            return self._run_joined(self._inner.throw, *thrown)

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = cast("TrackedCoroutine[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._begin(slot)
            # One argument wherever possible: the other signature is deprecated since 3.12.
            result = self._inner.throw(kind) if error is None else self._inner.throw(kind, error, trace)
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as end:
            self._end(before, end)
            raise
        finally:
            slot.driver = driver_before
            kind = error = trace = None  # or traceback, this frame and the exception would keep each other alive

        self._suspend(slot, before)
        return result

    def __del__(self) -> None:
        # As a coroutine does: who is dropped while suspended is closed. Otherwise its owner would stay open for ever.
        if self._steps and not self._has_ended:
            self.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return cast("Generator[Any, Any, T]", self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _run_joined(self, step: "Callable[..., Any]", *args: Any) -> Any:
        # A step that is another driver's.
        try:
            return step(*args)
        except StopIteration:
            self._end(None, None)
            raise
        except BaseException as error:
            self._end(None, error)
            raise
        finally:
            del args  # or a traceback, this frame and the exception would keep each other alive

    def _join(self) -> bool:
        raise NotImplementedError

    def _begin(self, slot: Slot) -> None:
        raise NotImplementedError

    def _end(self, before: "Owner | None", error: BaseException | None) -> None:
        raise NotImplementedError

    def _check_budgets(self, innermost: "Owner") -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the coroutine."""
        raise NotImplementedError

    def _resume(self, slot: Slot) -> None:
        self._steps += 1.0
        owner = get_active()
        if owner is not None and owner.ended:
            owner = active_owner()
        charged = owner.charged if owner is not None else None
        if slot.owner is None and charged is not None and not charged.detached:
            charged.meter.switch(slot, charged)  # what `give_turn` comes to, nearly always
        else:
            give_turn(slot, charged)

    def _suspend(self, slot: Slot, before: "Owner | None") -> None:
        after = slot.owner
        if before is None and after is not None:
            after.meter.switch(slot, None)  # as above
        else:
            give_turn(slot, before)
        owner = get_active()
        if owner is not None and owner.budgeted is not None:
            self._check_budgets(owner.budgeted)

    def _stop(self) -> Any:
        overrun, self._overrun = self._overrun, None
        try:
            return self._inner.throw(cast("BudgetExceeded", overrun))
        finally:
            del overrun  # the same as in `throw`


if TYPE_CHECKING or _native is None:
    Steps = PureSteps
else:
    Steps = _native.Steps

# 3.13.0 names every task that a factory makes "None" (set_name(None)).
_AUTOMATIC_NAME: Final = re.compile(r"Task-[0-9]+|None")


def is_trackable(coro: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    """Return whether it is a coroutine that nobody drives yet."""
    if type(coro) is CoroutineType:
        return True  # nearly always, and the other questions take longer than making a driver
    return isinstance(coro, Coroutine) and not isinstance(coro, TrackedCoroutine)


async def _nothing() -> None: ...


# What drivers follow that are only there for others to be made as they are.
UNUSED: Final = _nothing()
UNUSED.close()


class TrackedCoroutine(
    Steps[T], Coroutine[Any, Any, T]
):  # Any: what loops send and receive is between them and the coroutine
    """A coroutine whose steps are charged to the owners that it opens, or to the one of its own.

    Args:
        inner: the coroutine to follow.
        meter: who counts.
        name: the name of its own owner; an empty one is taken from the task, or from the coroutine where the task has
            only a number for a name; None means no owner of its own.
        kind: the kind of its own owner.
        budget: the budget of its own owner.
        include_children: whether owners below count into the figures of its own owner.
        is_layered: whether its own owner stands for a call that goes through a further owner of the same name.
        on_end: told when its own owner has ended, and by which exception, None for a result and for `close()`; what it
            raises is raised in place of a result.
        joins: where a driver follows the task already at its first step, open the owner there, and leave following to
            that one.

    Attributes:
        owner: its own owner, from its first step to its end, or None.
        task: the asyncio task that it runs in, or None; known from its first step to its last.
    """

    __slots__ = ()

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        taken: float = self._steps
        return int(taken)

    @property
    def __class__(self) -> type:
        # For `isinstance` and `inspect.iscoroutine`, where a program asks what it was given.
        return type(self._inner)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("__class__ of a coroutine cannot be set")

    def close(self) -> None:
        """Close the coroutine; its `finally` blocks are a charged step."""
        if not self._steps or self._has_ended:
            self._inner.close()
            return
        if self._is_joined:
            self._close_joined()
            return

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = self
        try:
            self._steps += 1
            owner = self._innermost()
            give_turn(slot, owner.charged if owner is not None else None)
            self._inner.close()
        except BaseException as error:
            self._end(before, error)
            raise
        else:
            self._end(before, None)
        finally:
            slot.driver = driver_before

    def _close_joined(self) -> None:
        try:
            self._inner.close()
        except BaseException as error:
            self._end(None, error)
            raise
        self._end(None, None)

    def _join(self) -> bool:
        driver = current_tracker()
        if driver is None and (self._meter.follows or (self.budget is not None and self.budget.hard)):
            return False
        self.owner = self._open(driver)
        return True

    def _begin(self, slot: Slot) -> None:
        self.task = current_task()
        if self.name is None:
            parent = active_owner()
            if parent is not None:
                give_turn(slot, parent.charged)
            return

        self.owner: Owner | None = self._open(self)

    def _open(self, driver: "TrackedCoroutine[Any] | None") -> Owner:
        return open_owner(
            self.name or self._task_name(),
            self.kind,
            meter=self._meter,
            include_children=self.include_children,
            budget=self.budget,
            driver=driver,
            is_layered=self.is_layered,
            is_task=self.kind == "task",
        )

    def _task_name(self) -> str:
        name = str(getattr(self.task, "get_name", str)())
        if not name or _AUTOMATIC_NAME.fullmatch(name):
            return str(self.__qualname__)
        return name

    def _check_budgets(self, innermost: Owner) -> None:
        budgeted: Owner | None = innermost
        while budgeted is not None:
            if budgeted.budget is not None and (used := budgeted.peak_bytes) > budgeted.ceiling:
                error = budgeted.budget.note_overrun(budgeted, used, in_flight=True)
                self._overrun = self._overrun or error
                return
            budgeted = budgeted.parent and budgeted.parent.budgeted

    def _end(self, before: Owner | None, error: BaseException | None) -> None:
        slot = per_thread.slot
        first = not self._has_ended
        self._has_ended = True
        owner, on_end = self.owner, self.on_end
        # A task holds its coroutine for good; that shall hold neither the task nor an owner that is over.
        self.task = self.owner = None
        self.on_end: Callable[[Owner, BaseException | None], object] | None = None
        if owner is not None and first:
            close_owner(owner, failed=is_failure(error), back=before)
        if not self._is_joined:
            give_turn(slot, before)
        if owner is not None and on_end is not None:
            on_end(owner, error)

    def _innermost(self) -> Owner | None:
        # Who is dropped may be closed in the context of whoever dropped it.
        innermost = owner = active_owner()
        while owner is not None and owner is not self.owner:
            owner = owner.parent
        return innermost if owner is self.owner else self.owner

    # What debuggers, reprs and asyncio's stack printers look at. One by one: a `__getattr__` would make each attribute
    # of ours slower, and each call of a method an allocation.
    cr_await: property = property(attrgetter("_inner.cr_await"))
    cr_code: property = property(attrgetter("_inner.cr_code"))
    cr_frame: property = property(attrgetter("_inner.cr_frame"))
    cr_origin: property = property(attrgetter("_inner.cr_origin"))
    cr_running: property = property(attrgetter("_inner.cr_running"))
    cr_suspended: property = property(attrgetter("_inner.cr_suspended"))

    def __repr__(self) -> str:
        return f"<driven {self._inner!r}>"
