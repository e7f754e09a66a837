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
  exception: it might find it only when the block has ended, inside our `__exit__`;
- in a thread other than the main one at all from Python 3.13 on, where a thread that waits for the GIL looks for an
  exception only some bytecodes after it got it, wherever that is. It is judged at its steps and at its end.

Whoever catches the error and goes on is told again when the grace is used up: a tenth of the budget, at least 1 MiB.
"""

import gc
import opcode
import sys
import weakref
from _thread import get_ident
from types import FrameType
from typing import Final

from memtools.errors import BudgetExceeded
from memtools.ledger._current import slots
from memtools.ledger._owner import Owner

# `_Py_HandlePending` looks at what is pending before it waits for the GIL, and no more after that.
_OTHERS_LOOK_AT_ONCE: Final = sys.version_info < (3, 13)
# Where a thread that waits for the GIL, or for a call to return, finds the exception before it does anything else.
_LOOKS_FOR_EXCEPTIONS: Final = frozenset(
    number
    for name, number in opcode.opmap.items()
    if name in ("RESUME", "JUMP_BACKWARD", "PRECALL") or name.startswith("CALL")
)
_SWALLOWING: Final = frozenset({"weakref", "_weakrefset", "memtools.events._hub"})

_collecting: list[int] = []  # the thread in which the garbage collector is at work, if it is
_stoppers: list[None] = []  # one entry for each that is at work


class Stopper:
    """Answers for one owner, until its tally is closed; does not keep it alive."""

    __slots__ = ("_has_told", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = weakref.ref(owner)
        self._has_told = False
        _begin_to_watch()

    def __del__(self) -> None:
        _end_to_watch()

    def __call__(self, used_bytes: int, thread: int) -> object:
        """Return what to raise in that thread, None for nothing, or NotImplemented to be asked again.

        Args:
            used_bytes: what the owner held when it crossed.
            thread: the identity of the thread that did it.
        """
        owner = self._owner()
        slot = slots.get(thread)
        if owner is None or owner.ended or slot is None or not _works_for(slot.owner, owner):
            return None
        if owner.overran and not self._has_told:
            self._has_told = True  # the driver was faster
            return None

        is_here = thread == get_ident()
        if not is_here and not _OTHERS_LOOK_AT_ONCE:
            return None
        frame = sys._getframe(1) if is_here else sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return None
        if thread in _collecting or _is_ours(frame) or _is_swallowed(frame) or not (is_here or _will_find_it(frame)):
            return NotImplemented
        self._has_told = True
        return _error(owner, used_bytes) if is_here else _late_error(owner, used_bytes)


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


def _is_ours(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
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
