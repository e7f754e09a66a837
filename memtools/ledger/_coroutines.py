"""Track a coroutine step by step, so that only its own steps are charged to its owners.

Between two steps of a coroutine other tasks run. A tracked coroutine sits between the event loop and the coroutine: at
the start of a step the owner that is active in the task's context becomes the current one, at the end the previous
owner becomes the current one again. One tracker serves a whole task: scopes and decorated calls inside it only change
the active owner.

It is a coroutine to its loop (asyncio, uvloop, trio) and shows debuggers and reprs the attributes of the inner one.
What is thrown in, cancellation included, goes to the coroutine inside a charged step, and so does `close()`.

What happens at each step is in C where the extension was built, and in `PythonTrackedCoroutine` otherwise.
"""

import re
import sys
from collections.abc import Callable, Coroutine, Generator
from operator import attrgetter
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeGuard, TypeVar, cast

from memtools.errors import BudgetExceeded
from memtools.ledger._context import (
    active_owner,
    current_task,
    current_tracker,
    get_active,
    is_failure,
    per_thread,
    set_current,
)
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import Budget, Kind, Meter, Owner, ThreadSlot, Tracker, native_module
from memtools.ledger._safe_points import waits_in_cleanup

T = TypeVar("T")

# 3.13.0 names every task that a factory makes "None" (set_name(None)).
_AUTOMATIC_NAME: Final = re.compile(r"Task-[0-9]+|None")

_native = native_module()


def is_trackable(coro: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    """Return whether it is a coroutine that is not tracked yet."""
    if type(coro) is CoroutineType:
        return True  # nearly always, and the other checks take longer than making a tracked coroutine
    return isinstance(coro, Coroutine) and not isinstance(coro, TrackedCoroutine)


class PythonTrackedCoroutine(Generic[T]):
    """The part of `TrackedCoroutine` that runs at each step; arguments and attributes are explained there."""

    __slots__ = (
        "__name__", "__qualname__", "__weakref__",
        "_has_ended", "_inner", "_is_nested", "_meter", "_pending_error", "_send", "_steps", "budget",
        "include_children", "is_stacked", "kind", "name", "nest_if_tracked", "on_end", "owner", "task",
    )  # fmt: skip

    def __init__(
        self,
        inner: Coroutine[Any, Any, T] | None,
        meter: Meter,
        *,
        name: str | None = None,
        kind: Kind = "task",
        budget: Budget | None = None,
        include_children: bool = True,
        is_stacked: bool = False,
        on_end: Callable[[Owner, BaseException | None], object] | None = None,
        nest_if_tracked: bool = False,
    ) -> None:
        self._steps: float = 0.0  # a float, as the figures of `Counter`
        self._has_ended = False
        self._is_nested = False
        self._inner = cast("Coroutine[Any, Any, T]", inner)
        self._send: Any = None if inner is None else inner.send  # Any: what it takes and returns is the coroutine's
        self.__qualname__: str = _qualname_of(inner)
        self.__name__: str = getattr(inner, "__name__", self.__qualname__)
        self._meter = meter
        self._pending_error: BudgetExceeded | None = None
        self.name: str | None = name
        self.kind: Kind = kind
        self.budget: Budget | None = budget
        self.include_children: bool = include_children
        self.is_stacked: bool = is_stacked
        self.on_end: Callable[[Owner, BaseException | None], object] | None = on_end
        self.nest_if_tracked: bool = nest_if_tracked
        self.owner: Owner | None = None
        self.task: object | None = None

    def copy_for(self, inner: Coroutine[Any, Any, Any]) -> Self:
        """Return a tracked coroutine for `inner` with the options of this one."""
        made = type(self)(
            inner,
            self._meter,
            name=self.name,
            kind=self.kind,
            budget=self.budget,
            include_children=self.include_children,
            is_stacked=self.is_stacked,
            on_end=self.on_end,
            nest_if_tracked=self.nest_if_tracked,
        )
        if self.__qualname__ != _qualname_of(self._inner):
            made.__name__, made.__qualname__ = self.__name__, self.__qualname__  # names that it was given
        return made

    def send(self, value: Any) -> Any:
        """Run one step."""
        if self.nest_if_tracked and not self._steps and self._start_nested():
            self._is_nested = True
            self._steps = 1.0
        if self._is_nested:
            return self._run_nested(self._send, value)

        slot = per_thread.slot
        before, tracker_before = slot.owner, slot.tracker
        slot.tracker = cast("TrackedCoroutine[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._start(slot)
            result = self._send(value) if self._pending_error is None else self._throw_pending()
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as error:
            self._end(before, error)
            raise
        finally:
            slot.tracker = tracker_before

        self._suspend(slot, before)
        return result

    def throw(self, kind: Any, error: Any = None, trace: TracebackType | None = None) -> Any:
        """Throw into the coroutine, inside a charged step; cancellation takes this way."""
        if self.nest_if_tracked and not self._steps:
            self._is_nested = True  # the coroutine will never start, so no owner is charged
            self._steps = 1.0
        if self._is_nested:
            thrown = (kind,) if error is None else (kind, error, trace)
            del kind, error, trace  # the same as below
            return self._run_nested(self._inner.throw, *thrown)

        slot = per_thread.slot
        before, tracker_before = slot.owner, slot.tracker
        slot.tracker = cast("TrackedCoroutine[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._start(slot)
            # One argument wherever possible: the other signature is deprecated since 3.12.
            result = self._inner.throw(kind) if error is None else self._inner.throw(kind, error, trace)
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as end:
            self._end(before, end)
            raise
        finally:
            slot.tracker = tracker_before
            kind = error = trace = None  # or traceback, this frame and the exception would keep each other alive

        self._suspend(slot, before)
        return result

    def __del__(self) -> None:
        # Closed when it is dropped while suspended, as a coroutine is. Otherwise its owner would stay open for ever.
        if self._steps and not self._has_ended:
            self.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return cast("Generator[Any, Any, T]", self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _run_nested(self, step: "Callable[..., Any]", *args: Any) -> Any:
        # A step that the tracker of the task has made a charged one.
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

    def _start_nested(self) -> bool:
        raise NotImplementedError

    def _start(self, slot: ThreadSlot) -> None:
        raise NotImplementedError

    def _end(self, before: Owner | None, error: BaseException | None) -> None:
        raise NotImplementedError

    def _check_budgets(self, innermost: Owner) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the coroutine."""
        raise NotImplementedError

    def _resume(self, slot: ThreadSlot) -> None:
        self._steps += 1.0
        owner = get_active()
        if owner is not None and owner.ended:
            owner = active_owner()
        charged = owner.charged_to if owner is not None else None
        if slot.owner is None and charged is not None and not charged.detached:
            charged.meter.switch(slot, charged)  # what `set_current` comes to, nearly always
        else:
            set_current(slot, charged)

    def _suspend(self, slot: ThreadSlot, before: Owner | None) -> None:
        after = slot.owner
        if before is None and after is not None:
            after.meter.switch(slot, None)  # as above
        else:
            set_current(slot, before)
        owner = get_active()
        if owner is not None and owner.nearest_budgeted is not None:
            self._check_budgets(owner.nearest_budgeted)

    def _throw_pending(self) -> Any:
        pending, self._pending_error = self._pending_error, None
        try:
            return self._inner.throw(cast("BudgetExceeded", pending))
        finally:
            del pending  # the same as in `throw`


def _qualname_of(inner: object) -> str:
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


if TYPE_CHECKING or _native is None:  # noqa: SIM108  # type checkers take a conditional expression for a variable
    TrackedSteps = PythonTrackedCoroutine
else:
    TrackedSteps = _native.TrackedCoroutine


# Any: what loops send and receive is between them and the coroutine.
class TrackedCoroutine(TrackedSteps[T], Coroutine[Any, Any, T]):
    """A coroutine whose steps are charged to the owners that it opens, or to the one of its own.

    Args:
        inner: the coroutine to track; None where this object only serves `copy_for`.
        meter: the meter that counts.
        name: the name of its own owner; an empty one is taken from the task, or from the coroutine where the task has
            only a number for a name; None means no owner of its own.
        kind: the kind of its own owner.
        budget: the budget of its own owner.
        include_children: whether owners below count into the figures of its own owner.
        is_stacked: whether its own owner stands for a call that goes through a further owner of the same name.
        on_end: called when its own owner has ended, with the exception that ended it, None for a result and for
            `close()`; what it raises is raised in place of a result.
        nest_if_tracked: where the task is tracked already at the first step, open the owner there, and leave the
            tracking to that tracker.

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
        if self._is_nested:
            self._close_nested()
            return

        slot = per_thread.slot
        before, tracker_before = slot.owner, slot.tracker
        slot.tracker = self
        try:
            self._steps += 1
            owner = self._current_inner_owner()
            set_current(slot, owner.charged_to if owner is not None else None)
            self._inner.close()
        except BaseException as error:
            self._end(before, error)
            raise
        else:
            self._end(before, None)
        finally:
            slot.tracker = tracker_before

    def _close_nested(self) -> None:
        try:
            self._inner.close()
        except BaseException as error:
            self._end(None, error)
            raise
        self._end(None, None)

    def _start_nested(self) -> bool:
        tracker = current_tracker()
        if tracker is None and (self._meter.tracks_owners or (self.budget is not None and self.budget.hard)):
            return False
        self.owner = self._open_owner(tracker)
        return True

    def _start(self, slot: ThreadSlot) -> None:
        self.task = current_task()
        if self.name is None:
            parent = active_owner()
            if parent is not None:
                set_current(slot, parent.charged_to)
            return

        self.owner: Owner | None = self._open_owner(self)

    def _open_owner(self, tracker: Tracker | None) -> Owner:
        return open_owner(
            self.name or self._task_name(),
            self.kind,
            meter=self._meter,
            include_children=self.include_children,
            budget=self.budget,
            tracker=tracker,
            is_stacked=self.is_stacked,
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
            if budgeted.budget is not None and (used := budgeted.peak_bytes) > budgeted.limit_bytes_in_flight:
                budget = budgeted.budget
                is_urgent = used > budget.limit_bytes + budget.grace_bytes // 2
                if budget.on_exceed in ("raise", "deny") and not is_urgent and waits_in_cleanup(self._inner):
                    return  # what is raised there would end the clean-up: checked again after the next step
                error = budget.report_exceeded(budgeted, used, in_flight=True)
                self._pending_error = self._pending_error or error
                return
            budgeted = budgeted.parent and budgeted.parent.nearest_budgeted

    def _end(self, before: Owner | None, error: BaseException | None) -> None:
        slot = per_thread.slot
        first = not self._has_ended
        self._has_ended = True
        owner, on_end = self.owner, self.on_end
        # A task keeps its coroutine for good, so drop all that must not live as long.
        self.task = self.owner = None
        self.on_end: Callable[[Owner, BaseException | None], object] | None = None
        if owner is not None and first:
            close_owner(owner, failed=is_failure(error), next_owner=before)
        if not self._is_nested:
            set_current(slot, before)
        if owner is not None and on_end is not None:
            on_end(owner, error)

    def _current_inner_owner(self) -> Owner | None:
        # A coroutine that is dropped may be closed in another context than its own.
        innermost = owner = active_owner()
        while owner is not None and owner is not self.owner:
            owner = owner.parent
        return innermost if owner is self.owner else self.owner

    # For debuggers, reprs and asyncio's stack printers. One by one: a `__getattr__` would make each attribute slower,
    # and each call of a method an allocation.
    cr_await: property = property(attrgetter("_inner.cr_await"))
    cr_code: property = property(attrgetter("_inner.cr_code"))
    cr_frame: property = property(attrgetter("_inner.cr_frame"))
    cr_origin: property = property(attrgetter("_inner.cr_origin"))
    cr_running: property = property(attrgetter("_inner.cr_running"))
    if sys.version_info >= (3, 15):
        cr_state: property = property(attrgetter("_inner.cr_state"))
    cr_suspended: property = property(attrgetter("_inner.cr_suspended"))

    def __repr__(self) -> str:
        return f"<tracked {self._inner!r}>"
