"""Follow a coroutine step by step, so that only its own steps are charged to its owners.

Between two steps of a coroutine other tasks run. The driver sits between the event loop and the coroutine: at the start
of a step it gives the turn to the owner that is active in the task's context, at the end it gives the turn back. One
driver serves a whole task: scopes and decorated calls inside it only move the active owner.

It is a coroutine to its loop (asyncio, uvloop, trio) and passes through what debuggers and reprs look at. What is
thrown in, cancellation included, goes to the coroutine inside a charged step, and so does `close()`.
"""

import re
from collections.abc import Callable, Coroutine, Generator
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from memtools.errors import BudgetExceeded
from memtools.ledger._book import end_owner, open_owner
from memtools.ledger._budget import Budget
from memtools.ledger._current import Slot, active_owner, current_task, get_active, give_turn, per_thread
from memtools.ledger._endings import is_failure
from memtools.ledger._meters import Meter
from memtools.ledger._owner import Kind, Owner

T = TypeVar("T")

# 3.13.0 names every task that a factory makes "None" (set_name(None)).
_AUTOMATIC_NAME: Final = re.compile(r"Task-[0-9]+|None")


class Driven(Coroutine[Any, Any, T]):  # Any: what loops send and receive is between them and the coroutine
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
        on_end: told when its own owner has ended, and whether it failed; what it raises is raised in place of a
            result.

    Attributes:
        owner: its own owner, once the first step has begun.
        task: the asyncio task that it runs in, or None; known from its first step to its last.
    """

    __slots__ = (
        "__name__", "__qualname__", "__weakref__",
        "_has_ended", "_inner", "_meter", "_overrun", "_send", "_steps", "budget", "include_children",
        "is_layered", "kind", "name", "on_end", "owner", "task",
    )  # fmt: skip

    def __init__(
        self,
        inner: Coroutine[Any, Any, T],
        meter: Meter,
        *,
        name: str | None = None,
        kind: Kind = "task",
        budget: Budget | None = None,
        include_children: bool = True,
        is_layered: bool = False,
        on_end: Callable[[Owner, bool], object] | None = None,
    ) -> None:
        self._steps = 0.0  # a float, for the reason given in `_tally`
        self._has_ended = False
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
        self.on_end: Callable[[Owner, bool], object] | None = on_end
        self.owner: Owner | None = None
        self.task: object | None = None

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self._steps)

    def send(self, value: Any) -> Any:
        """Run one step."""
        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = self
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._begin(slot)
            result = self._send(value) if self._overrun is None else self._stop()
        except BaseException as error:
            self._end(before, error)
            raise
        finally:
            slot.driver = driver_before

        self._suspend(slot, before)
        return result

    def throw(self, kind: Any, error: Any = None, trace: TracebackType | None = None) -> Any:
        """Throw into the coroutine, inside a charged step; cancellation passes through here."""
        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = self
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._begin(slot)
            # One argument wherever possible: the other signature is deprecated since 3.12.
            result = self._inner.throw(kind) if error is None else self._inner.throw(kind, error, trace)
        except BaseException as end:
            self._end(before, end)
            raise
        finally:
            slot.driver = driver_before
            kind = error = trace = None  # or traceback, this frame and the exception would keep each other alive

        self._suspend(slot, before)
        return result

    def close(self) -> None:
        """Close the coroutine; its `finally` blocks are a charged step."""
        if not self._steps or self._has_ended:
            self._inner.close()
            return

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = self
        try:
            self._steps += 1.0
            owner = self._innermost()
            give_turn(slot, owner.charged if owner is not None else None)
            self._inner.close()
        except BaseException as error:
            self._end(before, error)
            raise
        else:
            self._end(before, GeneratorExit())
        finally:
            slot.driver = driver_before

    def __del__(self) -> None:
        # As a coroutine does: who is dropped while suspended is closed. Otherwise its owner would stay open for ever.
        if self._steps and not self._has_ended:
            self.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return cast("Generator[Any, Any, T]", self)

    def __iter__(self) -> "Driven[T]":
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _begin(self, slot: Slot) -> None:
        self._steps = 1.0
        self.task = current_task()
        if self.name is None:
            parent = active_owner()
            if parent is not None:
                give_turn(slot, parent.charged)
            return

        self.owner = open_owner(
            self.name or self._task_name(),
            self.kind,
            meter=self._meter,
            include_children=self.include_children,
            budget=self.budget,
            driver=self,
            is_layered=self.is_layered,
            is_task=self.kind == "task",
        )

    def _task_name(self) -> str:
        name = getattr(self.task, "get_name", str)()
        if not name or _AUTOMATIC_NAME.fullmatch(name):
            name = self.__qualname__
        return str(name)

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

    def _suspend(self, slot: Slot, before: Owner | None) -> None:
        after = slot.owner
        if before is None and after is not None:
            after.meter.switch(slot, None)  # as above
        else:
            give_turn(slot, before)
        owner = get_active()
        if owner is not None and owner.budgeted is not None:
            self._check_budgets(owner.budgeted)

    def _check_budgets(self, innermost: Owner) -> None:
        budgeted: Owner | None = innermost
        while budgeted is not None:
            if budgeted.budget is not None and (used := budgeted.peak_bytes) > budgeted.ceiling:
                error = budgeted.budget.note_overrun(budgeted, used, in_flight=True)
                self._overrun = self._overrun or error
                return
            budgeted = budgeted.parent and budgeted.parent.budgeted

    def _stop(self) -> Any:
        overrun, self._overrun = self._overrun, None
        try:
            return self._inner.throw(cast("BudgetExceeded", overrun))
        finally:
            del overrun  # the same as in `throw`

    def _end(self, before: Owner | None, error: BaseException) -> None:
        slot = per_thread.slot
        first = not self._has_ended
        self._has_ended = True
        self.task = None  # a task holds its coroutine for good: they would keep each other alive
        owner = self.owner
        if owner is None or not first:
            give_turn(slot, before)
            return

        failed = is_failure(error)
        end_owner(owner, failed=failed, back=before)
        give_turn(slot, before)
        if self.on_end is not None:
            self.on_end(owner, failed)

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
