"""Stop an owner that exceeds its budget in the middle of its work.

The native counter asks for attention when an allocation crosses the budget. From then on the instructions of the thread
are looked at, and the exception is raised before one at which every `with`, `except` and `finally` around it runs (see
`_safe_points`): the head of a loop, or the beginning of a function. No block is refused. What one long call of C code
takes beyond the budget is measured, and is in the error.

An owner is told three things, with a grace of a tenth of its budget, at least 1 MiB, before each:

1. `BudgetExceeded`, an `Exception`, which code may catch and go on with less.
2. Code that goes on and uses the grace up gets `BudgetStop`, which derives from `BaseException` alone. Where the owner
   ends, `BudgetExceeded` is raised in its place.
3. Code that catches that, too, is left alone. The ledger counts it, and `BudgetExceeded` is raised where it ends.

No owner is stopped

- after it has ended, or while the thread works for another owner, in a task or greenlet beside it;
- while the ledger writes its records, which would be left incomplete;
- during a garbage collection, inside `__del__`, a `weakref` callback, a signal handler or a hook of memtools: what they
  raise is dropped or raised elsewhere. An exception that C code has dropped all the same is raised again;
- in a clean-up (an `except` or `finally`, the beginning and the end of a `with`), until half of the grace is used up.
  After that only at the head of a loop, where the blocks around the loop still run.

Where none of the next instructions is a safe place, the next allocations ask again.

From 3.12 on the instructions are events of `sys.monitoring`, for which a free tool id is borrowed for that moment. On
3.11 they are events of a trace function, beside the one of a debugger or of a coverage tool.
"""

import logging
import sys
import weakref
from types import CodeType, FrameType
from typing import Final

from memtools._forks import register_after_fork
from memtools._threads import frame_of_thread, running_threads
from memtools.errors import BudgetExceeded
from memtools.ledger import _native
from memtools.ledger._context import active_owner
from memtools.ledger._owner import BudgetStop, Owner, unheeded_stops
from memtools.ledger._safe_points import CONTEXT_NAMES, map_code

_TOOL_IDS: Final = (3, 4, 5)  # the last is for optimizers by convention, and it is only borrowed
_FRAMES: Final = 8  # innermost ones: the one that waits may never run again
_MAX_INSTRUCTIONS: Final = 20_000  # that are looked at for one request, which slows the program down
_MAX_DROPPED: Final = 16  # exceptions that C code may drop, until the budget is left to the end of the owner
_MAX_FRAMES: Final = 1000  # of which is remembered how much the owner held there
_NAME: Final = "memtools budgets"

# Modules whose code has taken something over that only its next lines give back, and that calls functions meanwhile.
_CAREFUL_MODULES: Final = frozenset({"contextlib", "threading", "queue", "logging"})
# Functions of `threading` that call whatever the thread is for: its work is no clean-up.
_THREAD_BOTTOM: Final = frozenset({"_bootstrap", "_bootstrap_inner", "run"})
# An event loop works for all of its tasks: they are stopped, and not the loop.
_LOOP_MODULES: Final = ("asyncio.", "selectors", "trio._core", "anyio._backends", "concurrent.futures.")
# What is raised inside is dropped, or leaves the tables of these modules incomplete.
_SUPPRESSING_MODULES: Final = frozenset({"weakref", "_weakrefset"})
# Modules in Python that the ledger calls: the first frame below them decides.
_CALLED_BY_LEDGER: Final = frozenset({"typing", "threading", "contextlib", "logging", "weakref", "_weakrefset"})
# What they have begun to write has to be complete, and what is raised in a hook that they call is logged.
_RECORDING_MODULES: Final = (
    "memtools.events",
    "memtools.ledger._context",
    "memtools.ledger._enforcement",
    "memtools.ledger._ledger",
    "memtools.ledger._owner",
    "memtools.ledger.meters",
    "memtools.scopes._budgets",
)

_log = logging.getLogger("memtools.budget")


class _PendingStop:
    """The stop that one thread is about to be told, or has just been told."""

    __slots__ = ("between", "codes", "enforcer", "handled_in", "instructions")

    def __init__(self, enforcer: "BudgetEnforcer") -> None:
        self.enforcer = weakref.ref(enforcer)  # an enforcer lives no longer than the counter of its owner
        self.codes: list[CodeType] = []  # that report their instructions
        self.instructions = 0
        # After the exception was raised: the frame in which it has a handler, and the code of those inside by their id.
        self.handled_in: FrameType | None = None
        self.between: dict[int, CodeType] = {}


_pending: dict[int, _PendingStop] = {}
_ignored_count = 0  # owners that are left alone


def ignored_stops() -> int:
    """Return how many owners caught every exception that was to stop them, and were left alone."""
    return _ignored_count


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _INSTRUCTION: Final = _monitoring.events.INSTRUCTION
    _tool: int | None = None

    def _watch(pending: _PendingStop, frame: FrameType | None) -> bool:
        """Have the innermost frames report their instructions; return False where no tool id is free."""
        if not _take_tool():
            return False
        watched = 0
        while frame is not None and watched < _FRAMES:
            if not _is_own_module(frame):
                _watch_frame(pending, frame)
                watched += 1
            frame = frame.f_back
        return True

    def _watch_frame(pending: _PendingStop, frame: FrameType) -> None:
        code = frame.f_code
        if _tool is not None and code not in pending.codes:
            pending.codes.append(code)
            _monitoring.set_local_events(_tool, code, _INSTRUCTION)

    def _unwatch(pending: _PendingStop) -> None:
        """Undo that, where no other thread needs it."""
        if _tool is None:
            return
        still_used = {code for other in _pending.values() for code in other.codes}
        for code in pending.codes:
            if code not in still_used:
                _monitoring.set_local_events(_tool, code, 0)
        if not _pending:
            _free_tool()

    def _take_tool() -> bool:
        global _tool
        if _tool is not None:
            return True
        for tool in _TOOL_IDS:
            if _monitoring.get_tool(tool) is None:
                _monitoring.use_tool_id(tool, _NAME)
                _monitoring.register_callback(tool, _INSTRUCTION, _native.on_instruction)
                _tool = tool
                return True
        return False

    def _free_tool() -> None:
        global _tool
        if _tool is not None:
            tool, _tool = _tool, None
            _monitoring.register_callback(tool, _INSTRUCTION, None)
            _monitoring.free_tool_id(tool)

else:

    def _watch(pending: _PendingStop, frame: FrameType | None) -> bool:  # noqa: ARG001
        """Return True: the trace function reports the instructions of every frame of its thread."""
        return True

    def _watch_frame(pending: _PendingStop, frame: FrameType) -> None:  # noqa: ARG001
        _native.trace_frame(frame)  # or it reports its lines only

    def _unwatch(pending: _PendingStop) -> None:
        """Do nothing: the trace function ends when it finds nothing to do."""


def _cancel(thread: int) -> None:
    pending = _pending.pop(thread, None)
    if pending is not None:
        _unwatch(pending)


def _decide(thread: int, frame: FrameType) -> BaseException | None:
    """Return what to raise before the next instruction of the frame, which is the innermost of the calling thread."""
    pending = _pending.get(thread)
    if pending is None:
        _native.stop_trace()  # or another thread runs the same code
        return None
    enforcer = pending.enforcer()
    owner = enforcer.owner if enforcer is not None else None
    if enforcer is None or owner is None:
        _cancel(thread)
        return None

    pending.instructions += 1
    code_map = map_code(frame.f_code)
    offset = frame.f_lasti
    if pending.handled_in is not None:
        if offset in code_map.passing:
            return None
        if pending.handled_in is frame:
            was_dropped = offset not in code_map.handlers and offset not in code_map.cleanup
        elif pending.between.get(id(frame)) is frame.f_code and offset not in code_map.starts:
            was_dropped = True  # and code went on that the exception should have left
        else:
            return None  # a finaliser, or the hook that prints dropped exceptions
        pending.handled_in = None
        if not was_dropped or not enforcer.take_back(owner):
            _cancel(thread)
            return None

    is_start = offset in code_map.starts
    if is_start or offset in code_map.loop_heads:
        answer = enforcer.decide(thread, pending, frame, owner, is_start)
        if answer is not NotImplemented:
            return answer if isinstance(answer, BaseException) else None
    if pending.instructions > _MAX_INSTRUCTIONS:
        _cancel(thread)
    return None


def _after_fork() -> None:
    for thread in _pending.keys() - running_threads():
        _cancel(thread)  # it exists no more


_native.set_decide(_decide)
register_after_fork(_after_fork)


class BudgetEnforcer:
    """Decides what is raised for one owner, until its counter is closed; does not keep the owner alive."""

    __slots__ = ("__weakref__", "_dropped", "_grace", "_opened_in", "_owner", "_seen", "_told")

    def __init__(self, owner: Owner) -> None:
        assert owner.budget is not None  # or it would have no enforcer
        self._owner = weakref.ref(owner)
        self._grace = owner.budget.grace_bytes
        self._seen: dict[int, dict[int, int]] = {}  # what it held where, by the id of the frame and the offset
        self._told = 0
        self._dropped = 0
        # The frame that opened the owner: what runs outside of it is no matter of this budget. By its id, which is its
        # own as long as the frame runs: a reference would keep the variables of the program alive.
        opener: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while opener is not None and _is_own_module(opener):
            opener = opener.f_back
        self._opened_in = (id(opener), opener.f_code if opener is not None else None)

    @property
    def owner(self) -> Owner | None:
        """The owner, while it is open."""
        owner = self._owner()
        return None if owner is None or owner.ended else owner

    def __call__(self, thread: int, frame: FrameType | None, is_refused: bool) -> None:
        """Begin to look at the instructions of a thread that has crossed the limit.

        Args:
            thread: the identity of the thread.
            frame: the frame that it executes, if it is the calling thread.
            is_refused: whether it asks because a block was refused, which is only reported.
        """
        owner = self.owner
        if owner is None or owner.budget is None:
            return
        if is_refused:
            owner.budget.report_refusal(owner, owner.refusals[1])
            return
        if owner.exceeded_reported and not self._told:
            self._told = 1  # the tracked coroutine was faster
            self._give_grace(owner)
            return
        if self._told >= 2:
            self._leave_alone(owner)
            return
        pending = _pending.get(thread)
        if pending is not None and (other := pending.enforcer()) is not None and other.owner is not None:
            if other is not self:
                return  # one at a time: the next allocations ask again
        else:
            _cancel(thread)
            pending = _pending[thread] = _PendingStop(self)
        pending.instructions = 0
        frame = frame or frame_of_thread(thread)
        if not _watch(pending, frame):
            _cancel(thread)

    def decide(self, thread: int, pending: _PendingStop, frame: FrameType, owner: Owner, is_start: bool) -> object:
        """Return what to raise, None if the owner is not to be stopped, or NotImplemented to be asked again."""
        if _is_ledger_at_work(frame):
            return NotImplemented
        if not _is_at_work_for(owner):
            return NotImplemented  # the event loop or another task; this one comes back to the head of its loop
        live, peak = owner.meter.read(owner)
        if not self._is_safe(frame, is_start, self._has_grown_here(frame, is_start, live)):
            return NotImplemented

        self._told += 1
        error = _exceeded_error(owner, peak)
        self._give_grace(owner)
        self._await_handler(thread, pending, frame)
        if self._told == 1:
            unheeded_stops.discard(owner)
            return error
        unheeded_stops.add(owner)
        return BudgetStop(owner, error)

    def _has_grown_here(self, frame: FrameType, is_start: bool, live: int) -> bool:
        """Return whether half of the grace was used up since the thread was first seen at this place.

        From one turn of a loop to another, that is, or from one call to another of a function that C code calls: what
        was used up before a clean-up began does not count.
        """
        if is_start:
            self._seen.pop(id(frame), None)  # an older frame has had the id
        place = frame.f_back if is_start and frame.f_back is not None else frame
        if len(self._seen) > _MAX_FRAMES:
            self._seen.clear()
        seen = self._seen.setdefault(id(place), {})
        return live > seen.setdefault(place.f_lasti, live) + self._grace // 2

    def take_back(self, owner: Owner) -> bool:
        """Raise again what C code has dropped; return False if that has happened too often."""
        unheeded_stops.add(owner)  # or it ends before the next safe place
        self._dropped += 1
        if self._dropped > _MAX_DROPPED:
            return False
        self._told -= 1
        return True

    def _give_grace(self, owner: Owner) -> None:
        counter: _native.Counter = owner.meter_state  # type: ignore[assignment]  # of the native meter
        self._seen.clear()
        counter.ask_again(self._grace)

    def _leave_alone(self, owner: Owner) -> None:
        global _ignored_count
        counter: _native.Counter = owner.meter_state  # type: ignore[assignment]  # as above
        counter.ask_again(-1)
        _ignored_count += 1
        _log.error("%s catches every exception and goes on beyond its budget: it is not stopped any more", owner.name)

    def _await_handler(self, thread: int, pending: _PendingStop, frame: FrameType) -> None:
        """See to it that the exception, which is about to be raised in the frame, is not dropped on its way."""
        between: dict[int, CodeType] = {}
        outer: FrameType | None = frame
        while outer is not None and not map_code(outer.f_code).is_handled(outer.f_lasti):
            between[id(outer)] = outer.f_code
            outer = outer.f_back
        if outer is frame or outer is None:
            _cancel(thread)  # the interpreter itself brings it to its handler
            return
        pending.handled_in = outer
        pending.between = between
        pending.instructions = 0
        _watch_frame(pending, outer)

    def _is_safe(self, frame: FrameType, is_start: bool, is_urgent: bool) -> bool:
        if _module(frame) in _CAREFUL_MODULES or _module(frame).startswith(_LOOP_MODULES):
            return False
        is_clean_up = frame.f_code.co_name in CONTEXT_NAMES
        is_clean_up_itself = is_clean_up and is_start
        code_map = map_code(frame.f_code)
        is_clean_up = is_clean_up or frame.f_lasti in code_map.cleanup
        inner, outer = frame, frame.f_back
        while True:
            if inner.f_code.co_name == "__del__" or _module(inner) in _SUPPRESSING_MODULES:
                return False
            if outer is None or (id(inner), inner.f_code) == self._opened_in:
                break
            code_map = map_code(outer.f_code)
            if outer.f_lasti in code_map.implicit:
                return False
            if (
                outer.f_lasti in code_map.cleanup
                or outer.f_code.co_name in CONTEXT_NAMES
                or (_module(outer) in _CAREFUL_MODULES and outer.f_code.co_name not in _THREAD_BOTTOM)
            ):
                is_clean_up = True
                is_clean_up_itself = is_clean_up_itself or (is_start and inner is frame)
            inner, outer = outer, outer.f_back
        return not is_clean_up or (is_urgent and not is_clean_up_itself)


def _exceeded_error(owner: Owner, used_bytes: int) -> BudgetExceeded:
    assert owner.budget is not None  # or it would have no enforcer
    error = None if owner.exceeded_reported else owner.budget.report_exceeded(owner, used_bytes, in_flight=True)
    return error or BudgetExceeded(owner.name, used_bytes, owner.budget.limit_bytes, owner.budget.measure)


def _is_at_work_for(owner: Owner) -> bool:
    active = active_owner()
    while active is not None:
        if active is owner:
            return True
        active = active.parent
    return False


def _is_ledger_at_work(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None and _module(frame) in _CALLED_BY_LEDGER:
        frame = frame.f_back
    if frame is not None and _is_own_module(frame):
        return True
    while frame is not None:
        if _module(frame).startswith(_RECORDING_MODULES):
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


def _is_own_module(frame: FrameType) -> bool:
    return _module(frame).startswith("memtools.")
