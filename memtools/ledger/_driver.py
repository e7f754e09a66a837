"""Follow a coroutine step by step, so that only its own steps are charged to its owners.

Between two steps of a coroutine other tasks run. The driver sits between the event loop and the coroutine: at the start
of a step it gives the turn to the owner that is active in the task's context, at the end it gives the turn back. One
driver serves a whole task: scopes and decorated calls inside it only move the active owner.

Covers: the first step, the end, budgets, what others see. Leaves to others: the way of a step to the coroutine and back
(`native/driver.c`; `_steps` where that was not built).

It is a coroutine to its loop (asyncio, uvloop, trio) and passes through what debuggers and reprs look at. What is
thrown in, cancellation included, goes to the coroutine inside a charged step, and so does `close()`.
"""

import re
from collections.abc import Callable, Coroutine
from operator import attrgetter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

from memtools.ledger._book import open_owner, settle_owner
from memtools.ledger._current import Slot, active_owner, current_driver, current_task, give_turn, per_thread
from memtools.ledger._endings import is_failure
from memtools.ledger._owner import Owner
from memtools.ledger._seats import native_seats

T = TypeVar("T")

_native = native_seats()
if TYPE_CHECKING or _native is None:
    from memtools.ledger._steps import PureSteps as Steps
else:
    Steps = _native.Steps

# 3.13.0 names every task that a factory makes "None" (set_name(None)).
_AUTOMATIC_NAME: Final = re.compile(r"Task-[0-9]+|None")


def can_be_driven(coro: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    """Return whether it is a coroutine that nobody drives yet."""
    if type(coro) is CoroutineType:
        return True  # nearly always, and the other questions take longer than making a driver
    return isinstance(coro, Coroutine) and not isinstance(coro, Driven)


async def _nothing() -> None: ...


# What drivers follow that are only there for others to be made as they are.
UNUSED: Final = _nothing()
UNUSED.close()


class Driven(Steps[T], Coroutine[Any, Any, T]):  # Any: what loops send and receive is between them and the coroutine
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
        driver = current_driver()
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

    def _open(self, driver: "Driven[Any] | None") -> Owner:
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
            settle_owner(owner, failed=is_failure(error), back=before)
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
