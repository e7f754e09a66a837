"""Who has the turn: on this thread, in this context, in this task.

Covers: the owner that new owners become children of (a context variable, inherited by tasks and `to_thread`), the owner
that this thread is charged to now (a slot per thread), and whether a driver follows the running coroutine.
Leaves to others: counting (`_traced`, `_resident`), following the steps (`_driver`, `_frames`).
"""

import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, cast

from memtools.ledger._owner import Owner, native_seats

if TYPE_CHECKING:
    from memtools.ledger._coroutines import TrackedCoroutine

active: ContextVar["Owner | None"] = ContextVar("memtools_owner", default=None)
# Bound once: a call of `active.get` makes a method object, which is an allocation for tracemalloc to trace.
get_active = active.get


class PureSlot:
    """What one thread is doing; in Python, where it is not in C.

    Attributes:
        owner: who is charged for what this thread allocates, or None for nobody.
        driver: the driver whose step this thread is in, if any.
        unwatched: open owners whose suspension nobody will tell of, until the event loop has its turn.
        asked_loop: the event loop that will see to them, if it was asked.
    """

    __slots__ = ("__weakref__", "asked_loop", "driver", "owner", "unwatched")

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.driver: TrackedCoroutine[Any] | None = None
        self.unwatched: list[Owner] = []
        self.asked_loop: weakref.ref[Any] | None = None  # Any: of asyncio, uvloop or trio


_native = native_seats()
if TYPE_CHECKING or _native is None:  # noqa: SIM108  # type checkers take a conditional expression for a variable
    Slot = PureSlot
else:
    Slot = _native.Slot

slots: weakref.WeakValueDictionary[int, Slot] = weakref.WeakValueDictionary()  # by the identity of their thread


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.slot = slots[threading.get_ident()] = Slot()


per_thread = _PerThread()


def _active_owner() -> "Owner | None":
    """Return the innermost open owner of this context.

    A context outlives the scopes that were open when it was copied, hence the search upwards.
    """
    owner = get_active()
    while owner is not None and owner.ended:
        owner = owner.parent
    return owner


def _give_turn(slot: Slot, owner: "Owner | None") -> None:
    """Charge `owner`, or nobody, for what this thread allocates from now on."""
    while owner is not None and owner.detached:
        owner = owner.outer  # it has ended, or has been given up, since it had the turn
    before = slot.owner
    if before is owner:
        return
    if before is not None and (owner is None or owner.meter is not before.meter):
        before.meter.switch(slot, None)
    if owner is not None:
        owner.meter.switch(slot, owner)


if TYPE_CHECKING or _native is None:
    active_owner = _active_owner
    give_turn = _give_turn
else:
    active_owner = _native.active_owner
    give_turn = _native.give_turn
    _native.follow(active, lambda: per_thread.slot)


def current_task() -> object | None:
    """Return the asyncio task that runs in this thread, or None; loads no asyncio of its own accord."""
    running_loop = _asyncio.running_loop
    if running_loop is None:
        running_loop = _asyncio.find()
        if running_loop is None:
            return None
    loop = running_loop()
    return _asyncio.current_task(loop) if loop is not None else None


class _Asyncio:
    # Looked up once it is there: asked at each call of a coroutine.
    __slots__ = ("current_task", "running_loop")

    def __init__(self) -> None:
        self.running_loop: Callable[[], Any] | None = None  # Any: a loop of whichever library
        self.current_task: Callable[[Any], object | None] = id

    def find(self) -> "Callable[[], Any] | None":
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and hasattr(asyncio, "current_task"):
            self.current_task = asyncio.current_task
            by_loop: Any = getattr(asyncio.tasks, "_current_tasks", None)  # Any: nobody promises it
            if isinstance(asyncio.current_task, FunctionType) and type(by_loop) is dict:
                self.current_task = cast("Any", by_loop).get  # what it looks into where it is not in C: 3.11
            self.running_loop = asyncio._get_running_loop
            if _native is not None:
                _native.know_tasks(self.running_loop, self.current_task)
        return self.running_loop


_asyncio = _Asyncio()
if _native is not None:
    _native.find_tasks(current_task)


def current_tracker() -> "TrackedCoroutine[Any] | None":  # Any: whatever the coroutine returns
    """Return the driver that follows the coroutine that runs in this thread step by step, or None.

    A task that was started eagerly runs inside a step of its parent, whose driver does not follow it: hence the look at
    the task.
    """
    driver = per_thread.slot.driver
    return driver if driver is not None and driver.task is current_task() else None


# Which ends are failures: being closed or cancelled is none.
#
# By name: neither asyncio nor trio has to be loaded for it.

_NO_FAILURES: Final = frozenset({"StopIteration", "GeneratorExit", "CancelledError", "Cancelled"})


def is_failure(error: BaseException | None) -> bool:
    """Return whether what ended with `error`, or with None for a result, has failed."""
    return error is not None and type(error).__name__ not in _NO_FAILURES


# Take the turn and give it back around each step of something that runs in steps.
#
# For code whose caller goes on between its steps in the same task and the same context: the frame of a generator, the
# steps of an asynchronous generator. Both what is charged on the thread and what is active in the context change hands.


class Suspension:
    """The turn of one owner that runs in steps; made while its owner has the turn.

    Attributes:
        owner: who has the turn during a step.
        before: who had it on the thread before the present step.
        active_before: who was active in the context then.
        is_taken: whether a step is running.
    """

    __slots__ = ("_active_inside", "active_before", "before", "is_taken", "owner")

    def __init__(self, owner: Owner, active_before: Owner | None) -> None:
        self.owner: Owner = owner
        self.before = owner.outer
        self.active_before = active_before
        self.is_taken: bool = True
        self._active_inside: Owner | None = owner
        owner.turn = self

    def take(self) -> None:
        """Begin a step."""
        if self.is_taken:
            return
        slot = per_thread.slot
        self.is_taken = True
        self.before = slot.owner
        before = self.active_before = get_active()
        if before is not self._active_inside:
            active.set(self._active_inside)
        give_turn(slot, self.owner.charged)

    def give_back(self) -> None:
        """End a step: whoever had the turn before goes on, while the owner stays open."""
        if not self.is_taken:
            return
        self.is_taken = False
        give_turn(per_thread.slot, self.before)
        # The consumer of a generator shares this context: what it opens is no child of ours.
        inside = self._active_inside = get_active()
        if inside is not self.active_before:
            active.set(self.active_before)

    def let_go(self, owner: Owner) -> tuple[Owner | None, Owner | None]:
        """Say who gets the turn, and who is active, after `owner`, which is about to end."""
        owner.turn = None
        return self.before, self.active_before
