"""Have a question put in another thread, at the next moment at which Python code may be interrupted (3.12 and later).

Covers: the thread's own next turn of a loop, call or return from C, by `sys.monitoring` on the code that it runs, for
as long as the question is open. Leaves to others: what is asked, and what is raised there (`_in_flight`).

An exception that is left for another thread (`PyThreadState_SetAsyncExc`) cannot be taken back when the moment turns
out to be a bad one, and since 3.13 it is found too late: a thread that waits for the GIL looks for it only some
bytecodes after it got it, when its block may have ended. The events that are used here come where the interpreter
looks by itself, so nobody is interrupted where a `with` could be torn.

A jump back is only told by its event: what is raised from there passes every handler of the frame by, `finally` and
`__exit__` included (3.12 to 3.13). So the question waits for the instruction that is jumped to.

Threads: `interrupt` and `leave_alone` are called under the GIL by anybody; the question is put in the thread it is for.
"""

import sys
from _thread import get_ident
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Final, TypeAlias

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
