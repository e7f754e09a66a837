"""The active owner of the context and the task, and the current owner of the thread.

The active owner is a context variable, which tasks, callbacks and `to_thread` inherit: new owners become its children.

The native meter charges the active owner of whichever context runs: the hooks in the allocator look it up where another
context has become current since the last allocation (`native/threads.h`). The tracemalloc meter, which cannot look at
each allocation, has a current owner in each thread, kept in the thread's slot, and is told of each change.
"""

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, cast

from memtools.ledger._owner import Owner, ThreadSlot, Tracker, native_module

# By name, so that neither asyncio nor trio has to be loaded for it.
_NO_FAILURES: Final = frozenset({"StopIteration", "GeneratorExit", "CancelledError", "Cancelled"})

# Set by `set_active` only, and never reset: the allocator would look at the variable inside the reset, and leave the
# old value in its cache.
active_variable: ContextVar[Owner | None] = ContextVar("memtools_owner", default=None)
# Bound once: a call of `active_variable.get` makes a method object, which is an allocation for tracemalloc to trace.
get_active = active_variable.get


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.slot = ThreadSlot()


per_thread = _PerThread()

_native = native_module()


def _active_owner() -> Owner | None:
    """Return the innermost open owner of this context.

    A context outlives the scopes that were open when it was copied, and some owners are not inherited by copies, hence
    the search upwards.
    """
    owner = get_active()
    while owner is not None and (owner.ended or (owner.home_context not in (None, _current_context()))):
        owner = owner.parent
    return owner


def _current_context() -> object:
    # Python code can only copy its context. The task and the thread tell contexts apart that matter here.
    return current_task() or threading.get_ident()


def _set_current(slot: ThreadSlot, owner: Owner | None) -> None:
    """Charge `owner`, or else the active one of the context, for what this thread allocates from now on."""
    while owner is not None and owner.detached:
        owner = owner.previous  # it has ended, or was abandoned, since it was the current one
    before = slot.owner
    if before is owner:
        return
    if before is not None and (owner is None or owner.meter is not before.meter):
        before.meter.switch(slot, None)
    if owner is not None:
        owner.meter.switch(slot, owner)


if TYPE_CHECKING or _native is None:
    active_owner = _active_owner
    current_context = _current_context
    set_active = active_variable.set
    set_current = _set_current
else:
    active_owner = _native.active_owner
    current_context = _native.current_context
    set_active = _native.set_active
    set_current = _native.set_current
    _native.set_context(active_variable, lambda: per_thread.slot)


def current_task() -> object | None:
    """Return the asyncio task that runs in this thread, or None; does not load asyncio."""
    running_loop = _asyncio.running_loop
    if running_loop is None:
        running_loop = _asyncio.find()
        if running_loop is None:
            return None
    loop = running_loop()
    return _asyncio.current_task(loop) if loop is not None else None


class _Asyncio:
    # Looked up once asyncio is loaded: each call of a coroutine asks.
    __slots__ = ("current_task", "running_loop")

    def __init__(self) -> None:
        self.running_loop: Callable[[], Any] | None = None  # Any: a loop of whichever library
        self.current_task: Callable[[Any], object | None] = id

    def find(self) -> "Callable[[], Any] | None":
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and hasattr(asyncio, "current_task"):
            self.current_task = asyncio.current_task
            by_loop: Any = getattr(asyncio.tasks, "_current_tasks", None)  # Any: not documented
            if isinstance(asyncio.current_task, FunctionType) and type(by_loop) is dict:
                self.current_task = cast("Any", by_loop).get  # what it looks into where it is not in C: 3.11
            self.running_loop = asyncio._get_running_loop
            if _native is not None:
                _native.set_loop_getters(self.running_loop, self.current_task)
        return self.running_loop


_asyncio = _Asyncio()
if _native is not None:
    _native.set_task_getter(current_task)


def current_tracker() -> Tracker | None:
    """Return the tracked coroutine whose step this thread is in, if it is that of the running task.

    A task that was started eagerly runs inside a step of its parent, whose tracker does not track it: hence the
    comparison of the tasks.
    """
    tracker = per_thread.slot.tracker
    return tracker if tracker is not None and tracker.task is current_task() else None


def is_failure(error: BaseException | None) -> bool:
    """Return whether what ended with `error`, or with None for a result, has failed; closed or cancelled has not."""
    return error is not None and type(error).__name__ not in _NO_FAILURES


class Suspension:
    """Suspends and resumes the owner of code that runs in steps, in one task and one context with its consumer.

    For the frame of a generator and for the steps of an asynchronous generator. Both the current owner of the thread
    and the active owner of the context change at each step. Made while its owner is the current one.

    Attributes:
        owner: the owner that is current during a step.
        previous: the owner that was current before the present step.
        previous_active: the owner that was active then.
        is_running: whether a step is running.
    """

    __slots__ = ("_active_in_step", "is_running", "owner", "previous", "previous_active")

    def __init__(self, owner: Owner, previous_active: Owner | None) -> None:
        self.owner: Owner = owner
        owner.unowned_before = inf  # between the steps its consumer runs, and no child of it
        self.previous = owner.previous
        self.previous_active = previous_active
        self.is_running: bool = True
        self._active_in_step: Owner | None = owner
        owner.suspension = self

    def resume(self) -> None:
        """Begin a step."""
        if self.is_running:
            return
        slot = per_thread.slot
        self.is_running = True
        self.previous = slot.owner
        before = self.previous_active = get_active()
        if before is not self._active_in_step:
            set_active(self._active_in_step)
        innermost = active_owner()  # a scope that was opened in an earlier step
        set_current(slot, innermost.charged_to if innermost is not None else None)

    def suspend(self) -> None:
        """End a step: the previous owner becomes the current one again, while this one stays open."""
        if not self.is_running:
            return
        self.is_running = False
        # The consumer of a generator shares this context: what it opens is no child of the generator's owner.
        active = self._active_in_step = get_active()
        if active is not self.previous_active:
            set_active(self.previous_active)
        set_current(per_thread.slot, self.previous)

    def release(self, owner: Owner) -> tuple[Owner | None, Owner | None]:
        """Return which owner is to be current, and which one active, after `owner`, which is about to end."""
        owner.suspension = None
        return self.previous, self.previous_active
