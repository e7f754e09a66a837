"""Stop an owner that is over its budget in the middle of its work: is this the moment, and what is raised?

Covers: the answer to the native counter's question, which it puts soon after the allocation that crossed the budget,
between two bytecodes of the thread that did so. Leaves to others: noticing (`native/tallies.c`), getting to that
thread (`native/budgets.c`), budgets with other meters, at steps and at the end (`_driver`, `memtools.scopes`).

Nobody is stopped

- after the owner has ended, or while its thread works for somebody else: a task is then stopped at its next step;
- inside our own book-keeping, which would be left half done: the question is put again a little later;
- during a collection, inside `__del__`, a `weakref` callback of the standard library's or a hook of ours: whoever calls
  those reports what they raise and goes on. (A callback of a plain `weakref.ref` cannot be told from other calls.)
- in a thread other than the main one that is in the middle of an operation after which the interpreter looks for no
  exception: it might find it only when the block has ended, inside our `__exit__`. From Python 3.12 on the question is
  put in the thread itself (`_interrupting`); before, the instruction where the thread waits tells.

Whoever catches the error and goes on is told again when the grace is used up: a tenth of the budget, at least 1 MiB.

The same way it is told that a block was refused: what was too large to be made at all (docs/decisions/0006).
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
from memtools.ledger._context import slots
from memtools.ledger._owner import Owner

# Have a question put in another thread, at the next moment at which Python code may be interrupted (3.12 and later).
#
# Covers: the thread's own next turn of a loop, call or return from C, by `sys.monitoring` on the code that it runs, for
# as long as the question is open. Leaves to others: what is asked, and what is raised there (`_in_flight`).
#
# An exception that is left for another thread (`PyThreadState_SetAsyncExc`) cannot be taken back when the moment turns
# out to be a bad one, and since 3.13 it is found too late: a thread that waits for the GIL looks for it only some
# bytecodes after it got it, when its block may have ended. The events that are used here come where the interpreter
# looks by itself, so nobody is interrupted where a `with` could be torn.
#
# A jump back is only told by its event: what is raised from there passes every handler of the frame by, `finally` and
# `__exit__` included (3.12 to 3.13). So the question waits for the instruction that is jumped to.
#
# Threads: `interrupt` and `leave_alone` are called under the GIL by anybody; the question is put in the thread it is for.

# Given the frame that would be interrupted; returns what to raise there, None for nothing, or NotImplemented to be
# asked again at the next such moment.
Question: TypeAlias = Callable[[FrameType], object]

_TOOL_IDS: Final = (3, 4, 5)  # the last is for optimizers by convention, and it is only borrowed
_FRAMES: Final = 8  # innermost ones: the one that waits may never run again
_NAME: Final = "memtools budgets"
_caller = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; the events name no frame


class _Watch:
    """One thread, the code that it runs, and what to ask."""

    __slots__ = ("awaited", "codes", "question")

    def __init__(self, question: Question, codes: list[CodeType]) -> None:
        self.question = question
        self.codes = codes
        self.awaited: tuple[CodeType, int] | None = None  # the instruction that has been jumped back to


_watches: dict[int, _Watch] = {}


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _EVENTS: Final = _monitoring.events
    _USUAL: Final = _EVENTS.PY_START | _EVENTS.PY_RESUME | _EVENTS.JUMP | _EVENTS.CALL
    _tool: int | None = None

    def interrupt(thread: int, frame: FrameType | None, question: Question) -> bool:
        """Have the question put in that thread soon; whether that can be done.

        Args:
            thread: the identity of the thread.
            frame: what it is executing.
            question: see above; a later one takes the place of the one before.
        """
        if not _take_tool():
            return False
        leave_alone(thread, keeps_tool=True)
        codes: list[CodeType] = []
        while frame is not None and len(codes) < _FRAMES:
            codes.append(frame.f_code)
            frame = frame.f_back
        _watches[thread] = _Watch(question, codes)
        for code in codes:
            _set(code, _USUAL)
        return True

    def leave_alone(thread: int, *, keeps_tool: bool = False) -> None:
        """Forget the question, if there is one."""
        watch = _watches.pop(thread, None)
        if watch is None:
            return
        others = {code for other in _watches.values() for code in other.codes}
        for code in watch.codes:
            if code not in others:
                _set(code, 0)
        if not _watches and not keeps_tool:
            _give_tool_back()

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

    def _give_tool_back() -> None:
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
        _ask(_caller(1))

    def _on_jump(code: CodeType, offset: int, destination: int) -> None:
        watch = _watches.get(get_ident())
        if watch is not None and destination <= offset:  # as the interpreter, which looks when it jumps back
            watch.awaited = (code, destination)
            _set(code, _USUAL | _EVENTS.INSTRUCTION)

    def _on_instruction(code: CodeType, offset: int) -> None:
        watch = _watches.get(get_ident())
        if watch is not None and watch.awaited == (code, offset):
            watch.awaited = None
            _set(code, _USUAL)
            _ask(_caller(1))

    def _on_return_from_c(_code: CodeType, _offset: int, _function: object, _first: object) -> None:
        _ask(_caller(1))

    _CALLBACKS: Final[dict[int, Callable[..., object]]] = {  # `...`: each event has arguments of its own
        _EVENTS.PY_START: _on_start,
        _EVENTS.PY_RESUME: _on_start,
        _EVENTS.JUMP: _on_jump,
        _EVENTS.INSTRUCTION: _on_instruction,
        _EVENTS.C_RETURN: _on_return_from_c,
    }

else:

    def interrupt(thread: int, frame: FrameType | None, question: Question) -> bool:  # noqa: ARG001
        """Return False: `sys.monitoring` came with Python 3.12."""
        return False

    def leave_alone(thread: int, *, keeps_tool: bool = False) -> None:
        """Do nothing."""


def _ask(frame: FrameType) -> None:
    thread = get_ident()
    watch = _watches.get(thread)
    if watch is None:
        return  # another thread in the same code
    answer = watch.question(frame)
    if answer is NotImplemented:
        return
    leave_alone(thread)
    if isinstance(answer, BaseException):
        raise answer


# `_Py_HandlePending` looks at what is pending before it waits for the GIL, and no more after that.
_OTHERS_LOOK_AT_ONCE: Final = sys.version_info < (3, 13)
# Where a thread that waits for the GIL, or for a call to return, finds the exception before it does anything else.
_LOOKS_FOR_EXCEPTIONS: Final = frozenset(
    number
    for name, number in opcode.opmap.items()
    if name in ("RESUME", "JUMP_BACKWARD", "PRECALL") or name.startswith("CALL")
)
# What our book-keeping calls that is written in Python: the caller decides.
_IN_OUR_HANDS: Final = frozenset({"typing", "threading", "contextlib", "logging"})
_SWALLOWING: Final = frozenset({"weakref", "_weakrefset", "memtools.events"})

_collecting: list[int] = []  # the thread in which the garbage collector is at work, if it is
_stoppers: list[None] = []  # one entry for each that is at work


class Stopper:
    """Answers for one owner, until its tally is closed; does not keep it alive."""

    __slots__ = ("__weakref__", "_has_refused", "_has_told", "_interrupts", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = weakref.ref(owner)
        self._has_told = False
        self._has_refused = False
        self._interrupts: set[int] = set()  # threads that are to be asked by themselves
        _begin_to_watch()

    def __del__(self) -> None:
        for thread in self._interrupts:
            leave_alone(thread)
        _end_to_watch()

    def __call__(self, used_bytes: int, thread: int, is_refused: bool) -> object:
        """Return what to raise in that thread, None for nothing, or NotImplemented to be asked again.

        Args:
            used_bytes: what the owner held when it crossed, or would have held.
            thread: the identity of the thread that did it.
            is_refused: whether it would have held that much, but for a block that was refused.
        """
        owner = self._owner_to_stop(thread)
        if owner is None:
            return None
        if thread == get_ident():
            return self._answer(owner, thread, sys._getframe(1), used_bytes, is_refused)  # pyright: ignore[reportPrivateUsage]

        frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return None
        if self._ask_there(thread, frame, used_bytes, is_refused) or not _OTHERS_LOOK_AT_ONCE:
            return None
        if not _is_good_moment(thread, frame) or not _will_find_it(frame):
            return NotImplemented
        if is_refused and self._lets_be(owner):
            return None  # told at the end: its hooks are used to be called in its own thread
        self._has_told = True
        return _late_error(owner, used_bytes)

    def _owner_to_stop(self, thread: int) -> Owner | None:
        owner = self._owner()
        slot = slots.get(thread)
        if owner is None or owner.ended or slot is None or not _works_for(slot.owner, owner):
            return None
        if owner.overran and not self._has_told:
            self._has_told = True  # the driver was faster
            return None
        return owner

    def _answer(self, owner: Owner, thread: int, frame: FrameType, used_bytes: int, is_refused: bool) -> object:
        if not _is_good_moment(thread, frame):
            return NotImplemented
        if is_refused and self._lets_be(owner):
            assert owner.budget is not None  # or it would have no stopper
            owner.budget.note_refusal(owner, used_bytes)
            return None
        self._has_told = True
        return _error(owner, used_bytes)

    def _lets_be(self, owner: Owner) -> bool:
        # A MemoryError is on its way up already, through blocks that clean up and are not to be interrupted. Who has
        # caught one and tries again is stopped.
        is_first, self._has_refused = not self._has_refused, True
        return is_first or (owner.budget is not None and owner.budget.on_exceed == "deny")

    def _ask_there(self, thread: int, frame: FrameType, used_bytes: int, is_refused: bool) -> bool:
        itself = weakref.ref(self)  # what waits must not keep it alive: its end takes the question back

        def question(frame: FrameType) -> object:
            stopper = itself()
            owner = stopper._owner_to_stop(thread) if stopper is not None else None
            if stopper is None or owner is None:
                return None
            charged = slots[thread].owner
            _native.switch(None)  # what it takes to stop an owner is not the owner's
            try:
                return stopper._answer(owner, thread, frame, used_bytes, is_refused)
            finally:
                _native.switch(None if charged is None else charged.watch)  # type: ignore[arg-type]  # as in `_native_meter`

        if not interrupt(thread, frame, question):
            return False
        self._interrupts.add(thread)
        return True


def _is_good_moment(thread: int, frame: FrameType) -> bool:
    return thread not in _collecting and not _is_ours(frame) and not _is_swallowed(frame)


def _begin_to_watch() -> None:
    _stoppers.append(None)
    if len(_stoppers) == 1:
        # First and last of all callbacks: none of the others is to be interrupted.
        gc.callbacks.insert(0, _on_start)
        gc.callbacks.append(_on_stop)


def _end_to_watch() -> None:
    _stoppers.pop()
    if not _stoppers:
        gc.callbacks.remove(_on_start)
        gc.callbacks.remove(_on_stop)
        _collecting.clear()


def _on_start(phase: str, _about: dict[str, int]) -> None:
    if phase == "start":
        _collecting.append(get_ident())


def _on_stop(phase: str, _about: dict[str, int]) -> None:
    if phase == "stop":
        _collecting.clear()


def _works_for(charged: Owner | None, owner: Owner) -> bool:
    while charged is not None:
        if charged is owner:
            return True
        charged = charged.parent
    return False


def _is_ours(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None and frame.f_globals.get("__name__") in _IN_OUR_HANDS:
        frame = frame.f_back
    module = frame.f_globals.get("__name__") if frame is not None else None
    return isinstance(module, str) and module.startswith("memtools.")


def _is_swallowed(innermost: FrameType) -> bool:
    frame: FrameType | None = innermost
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in _SWALLOWING:
            return True
        frame = frame.f_back
    return False


def _will_find_it(frame: FrameType) -> bool:
    return frame.f_lasti < 0 or frame.f_code.co_code[frame.f_lasti] in _LOOKS_FOR_EXCEPTIONS


def _error(owner: Owner, used_bytes: int) -> BudgetExceeded:
    assert owner.budget is not None  # or it would have no stopper
    told = None if owner.overran else owner.budget.note_overrun(owner, used_bytes, in_flight=True)
    return told or BudgetExceeded(owner.name, used_bytes, owner.budget.limit_bytes, owner.budget.measure)


def _late_error(owner: Owner, used_bytes: int) -> type[BudgetExceeded]:
    # Another thread can only be left a class. This one makes the very error that is raised here, and it does so in that
    # thread, where hooks on events are used to be called.
    class Late(BudgetExceeded):
        def __new__(cls) -> BudgetExceeded:  # type: ignore[misc]  # on purpose: what is raised is no `Late`
            return _error(owner, used_bytes)

    return Late
