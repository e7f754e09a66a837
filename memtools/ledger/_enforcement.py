"""Stop an owner that exceeds its budget in the middle of its work.

The native counter asks, soon after the allocation that crossed the budget and between two bytecodes of the thread that
made it, what is to be raised there. No owner is stopped

- after it has ended, or while its thread works for another owner: a task is then stopped at its next step;
- while the ledger writes its records, which would be left incomplete: the check runs again a little later;
- during a garbage collection, inside `__del__`, a `weakref` callback of the standard library or a hook of memtools:
  their callers report what they raise and go on. (A callback of a plain `weakref.ref` looks like any other call.)
- in a thread other than the main one that is in the middle of an operation after which the interpreter checks for no
  exception: it might raise it only when the block has ended, inside `__exit__`. From Python 3.12 on the check runs in
  the thread itself, at its next safe point; before, the instruction where the thread waits decides.

Code that catches the error and goes on is stopped again when the grace is used up: a tenth of the budget, at least
1 MiB. A block that is too large to be allocated at all is refused, and reported the same way (docs/decisions/0006).

Safe points (3.12 and later) are the thread's next turn of a loop, call or return from C, found by `sys.monitoring` on
the code that the thread runs, for as long as a check is pending. An exception that is set for another thread
(`PyThreadState_SetAsyncExc`) cannot be taken back when the moment turns out to be a bad one, and since 3.13 it is
raised too late: a thread that waits for the GIL checks for it only some bytecodes after it got it, when its block may
have ended. The events that are used here come where the interpreter checks by itself, so no `with` is interrupted
halfway. An exception from the event of a jump back passes by every handler of the frame, `finally` and `__exit__`
included (3.12 to 3.13), so the check waits for the instruction that is the target of the jump.
"""

import gc
import opcode
import sys
import weakref
from _thread import get_ident
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Final, TypeAlias

from memtools.errors import BudgetExceeded
from memtools.ledger import _native
from memtools.ledger._context import slots_by_thread
from memtools.ledger._owner import Owner

# Called with the frame that would be interrupted; returns what to raise there, None for nothing, or NotImplemented to
# be called again at the next safe point.
Check: TypeAlias = Callable[[FrameType], object]

_TOOL_IDS: Final = (3, 4, 5)  # the last is for optimizers by convention, and it is only borrowed
_FRAMES: Final = 8  # innermost ones: the one that waits may never run again
_NAME: Final = "memtools budgets"
_caller = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; the events name no frame


class _PendingCheck:
    """The check of one thread, and the code that the thread runs."""

    __slots__ = ("check", "codes", "jump_target")

    def __init__(self, check: Check, codes: list[CodeType]) -> None:
        self.check = check
        self.codes = codes
        self.jump_target: tuple[CodeType, int] | None = None  # the instruction that has been jumped back to


_pending: dict[int, _PendingCheck] = {}


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _EVENTS: Final = _monitoring.events
    _USUAL: Final = _EVENTS.PY_START | _EVENTS.PY_RESUME | _EVENTS.JUMP | _EVENTS.CALL
    _tool: int | None = None

    def run_at_safe_point(thread: int, frame: FrameType | None, check: Check) -> bool:
        """Have the check run in that thread at its next safe point; return False if that is not possible.

        Called under the GIL by any thread.

        Args:
            thread: the identity of the thread.
            frame: the frame that it executes.
            check: see `Check`; it replaces a check that is pending.
        """
        if not _take_tool():
            return False
        cancel(thread, keeps_tool=True)
        codes: list[CodeType] = []
        while frame is not None and len(codes) < _FRAMES:
            codes.append(frame.f_code)
            frame = frame.f_back
        _pending[thread] = _PendingCheck(check, codes)
        for code in codes:
            _set(code, _USUAL)
        return True

    def cancel(thread: int, *, keeps_tool: bool = False) -> None:
        """Drop the pending check of that thread, if there is one. Called under the GIL by any thread."""
        pending = _pending.pop(thread, None)
        if pending is None:
            return
        still_used = {code for other in _pending.values() for code in other.codes}
        for code in pending.codes:
            if code not in still_used:
                _set(code, 0)
        if not _pending and not keeps_tool:
            _free_tool()

    def _take_tool() -> bool:
        global _tool
        if _tool is not None:
            return True
        for tool in _TOOL_IDS:
            if _monitoring.get_tool(tool) is None:
                _monitoring.use_tool_id(tool, _NAME)
                for event, callback in _CALLBACKS.items():
                    _monitoring.register_callback(tool, event, callback)
                _tool = tool
                return True
        return False

    def _free_tool() -> None:
        global _tool
        if _tool is not None:
            tool, _tool = _tool, None
            for event in _CALLBACKS:
                _monitoring.register_callback(tool, event, None)
            _monitoring.free_tool_id(tool)

    def _set(code: CodeType, events: int) -> None:
        if _tool is not None:
            _monitoring.set_local_events(_tool, code, events)

    def _on_start(_code: CodeType, _offset: int) -> None:
        _run_check(_caller(1))

    def _on_jump(code: CodeType, offset: int, destination: int) -> None:
        pending = _pending.get(get_ident())
        if pending is not None and destination <= offset:  # as the interpreter, which checks when it jumps back
            pending.jump_target = (code, destination)
            _set(code, _USUAL | _EVENTS.INSTRUCTION)

    def _on_instruction(code: CodeType, offset: int) -> None:
        pending = _pending.get(get_ident())
        if pending is not None and pending.jump_target == (code, offset):
            pending.jump_target = None
            _set(code, _USUAL)
            _run_check(_caller(1))

    def _on_return_from_c(_code: CodeType, _offset: int, _function: object, _first: object) -> None:
        _run_check(_caller(1))

    _CALLBACKS: Final[dict[int, Callable[..., object]]] = {  # `...`: each event has arguments of its own
        _EVENTS.PY_START: _on_start,
        _EVENTS.PY_RESUME: _on_start,
        _EVENTS.JUMP: _on_jump,
        _EVENTS.INSTRUCTION: _on_instruction,
        _EVENTS.C_RETURN: _on_return_from_c,
    }

else:

    def run_at_safe_point(thread: int, frame: FrameType | None, check: Check) -> bool:  # noqa: ARG001
        """Return False: `sys.monitoring` came with Python 3.12."""
        return False

    def cancel(thread: int, *, keeps_tool: bool = False) -> None:
        """Do nothing."""


def _run_check(frame: FrameType) -> None:
    thread = get_ident()
    pending = _pending.get(thread)
    if pending is None:
        return  # another thread in the same code
    answer = pending.check(frame)
    if answer is NotImplemented:
        return
    cancel(thread)
    if isinstance(answer, BaseException):
        raise answer


# Since 3.13 `_Py_HandlePending` checks before it waits for the GIL, and not after it.
_ASYNC_EXC_IS_SEEN_AT_ONCE: Final = sys.version_info < (3, 13)
# Where a thread that waits for the GIL, or for a call to return, finds the exception before it does anything else.
_CHECKING_OPCODES: Final = frozenset(
    number
    for name, number in opcode.opmap.items()
    if name in ("RESUME", "JUMP_BACKWARD", "PRECALL") or name.startswith("CALL")
)
# Modules in Python that the ledger calls: the first frame below them decides.
_CALLED_BY_LEDGER: Final = frozenset({"typing", "threading", "contextlib", "logging"})
_SUPPRESSING: Final = frozenset({"weakref", "_weakrefset", "memtools.events"})

_collecting: list[int] = []  # the thread in which the garbage collector runs, if it does
_enforcers: list[None] = []  # one entry for each that exists


class BudgetEnforcer:
    """Decides what is raised for one owner, until its counter is closed; does not keep the owner alive."""

    __slots__ = ("__weakref__", "_checked_threads", "_has_raised", "_has_refused", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = weakref.ref(owner)
        self._has_raised = False
        self._has_refused = False
        self._checked_threads: set[int] = set()  # threads with a pending check
        _start_gc_watch()

    def __del__(self) -> None:
        for thread in self._checked_threads:
            cancel(thread)
        _stop_gc_watch()

    def __call__(self, used_bytes: int, thread: int, is_refused: bool) -> object:
        """Return what to raise in that thread, None for nothing, or NotImplemented to be called again.

        Args:
            used_bytes: what the owner held when it crossed the limit, or would have held.
            thread: the identity of the thread that allocated.
            is_refused: whether a block was refused with which it would have held that much.
        """
        owner = self._owner_to_interrupt(thread)
        if owner is None:
            return None
        if thread == get_ident():
            return self._decide(owner, thread, sys._getframe(1), used_bytes, is_refused)  # pyright: ignore[reportPrivateUsage]

        frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return None
        if self._check_in_thread(thread, frame, used_bytes, is_refused) or not _ASYNC_EXC_IS_SEEN_AT_ONCE:
            return None
        if not _is_safe_point(thread, frame) or not _async_exc_is_seen_at(frame):
            return NotImplemented
        if is_refused and self._tolerates_first(owner):
            return None  # reported at the end: hooks are called in the owner's own thread
        self._has_raised = True
        return _deferred_error(owner, used_bytes)

    def _owner_to_interrupt(self, thread: int) -> Owner | None:
        owner = self._owner()
        slot = slots_by_thread.get(thread)
        if owner is None or owner.ended or slot is None or not _is_charged_to(slot.owner, owner):
            return None
        if owner.exceeded_reported and not self._has_raised:
            self._has_raised = True  # the tracked coroutine was faster
            return None
        return owner

    def _decide(self, owner: Owner, thread: int, frame: FrameType, used_bytes: int, is_refused: bool) -> object:
        if not _is_safe_point(thread, frame):
            return NotImplemented
        if is_refused and self._tolerates_first(owner):
            assert owner.budget is not None  # or it would have no enforcer
            owner.budget.report_refusal(owner, used_bytes)
            return None
        self._has_raised = True
        return _exceeded_error(owner, used_bytes)

    def _tolerates_first(self, owner: Owner) -> bool:
        # A MemoryError propagates already, through blocks that clean up and must not be interrupted. Code that has
        # caught one and tries again is stopped.
        is_first, self._has_refused = not self._has_refused, True
        return is_first or (owner.budget is not None and owner.budget.on_exceed == "deny")

    def _check_in_thread(self, thread: int, frame: FrameType, used_bytes: int, is_refused: bool) -> bool:
        itself = weakref.ref(self)  # a pending check must not keep it alive: `__del__` cancels the check

        def check(frame: FrameType) -> object:
            enforcer = itself()
            owner = enforcer._owner_to_interrupt(thread) if enforcer is not None else None
            if enforcer is None or owner is None:
                return None
            charged = slots_by_thread[thread].owner
            _native.switch(None)  # do not charge the owner for being stopped
            try:
                return enforcer._decide(owner, thread, frame, used_bytes, is_refused)
            finally:
                _native.switch(None if charged is None else charged.meter_state)  # type: ignore[arg-type]  # checked in C

        if not run_at_safe_point(thread, frame, check):
            return False
        self._checked_threads.add(thread)
        return True


def _is_safe_point(thread: int, frame: FrameType) -> bool:
    return thread not in _collecting and not _is_ledger_frame(frame) and not _is_suppressed(frame)


def _start_gc_watch() -> None:
    _enforcers.append(None)
    if len(_enforcers) == 1:
        # First and last of all callbacks, so that none of the other ones is interrupted.
        gc.callbacks.insert(0, _on_gc_start)
        gc.callbacks.append(_on_gc_stop)


def _stop_gc_watch() -> None:
    _enforcers.pop()
    if not _enforcers:
        gc.callbacks.remove(_on_gc_start)
        gc.callbacks.remove(_on_gc_stop)
        _collecting.clear()


def _on_gc_start(phase: str, _info: dict[str, int]) -> None:
    if phase == "start":
        _collecting.append(get_ident())


def _on_gc_stop(phase: str, _info: dict[str, int]) -> None:
    if phase == "stop":
        _collecting.clear()


def _is_charged_to(charged: Owner | None, owner: Owner) -> bool:
    while charged is not None:
        if charged is owner:
            return True
        charged = charged.parent
    return False


def _is_ledger_frame(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None and frame.f_globals.get("__name__") in _CALLED_BY_LEDGER:
        frame = frame.f_back
    module = frame.f_globals.get("__name__") if frame is not None else None
    return isinstance(module, str) and module.startswith("memtools.")


def _is_suppressed(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in _SUPPRESSING:
            return True
        frame = frame.f_back
    return False


def _async_exc_is_seen_at(frame: FrameType) -> bool:
    return frame.f_lasti < 0 or frame.f_code.co_code[frame.f_lasti] in _CHECKING_OPCODES


def _exceeded_error(owner: Owner, used_bytes: int) -> BudgetExceeded:
    assert owner.budget is not None  # or it would have no enforcer
    error = None if owner.exceeded_reported else owner.budget.report_exceeded(owner, used_bytes, in_flight=True)
    return error or BudgetExceeded(owner.name, used_bytes, owner.budget.limit_bytes, owner.budget.measure)


def _deferred_error(owner: Owner, used_bytes: int) -> type[BudgetExceeded]:
    # Only a class can be set for another thread. This one makes the very error that is raised here, and it does so in
    # that thread, where hooks on events are called.
    class Deferred(BudgetExceeded):
        def __new__(cls) -> BudgetExceeded:  # type: ignore[misc]  # on purpose: the raised error is no `Deferred`
            return _exceeded_error(owner, used_bytes)

    return Deferred
