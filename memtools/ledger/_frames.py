"""Track a scope by the frame that contains its `with`, using `sys.monitoring` (Python 3.12 and later).

A scope may be in a generator, whose consumer runs between its steps in the same context; or, with the tracemalloc
meter, in a coroutine that is not tracked. The interpreter reports when that code object yields and resumes: the owner
is suspended and resumed, whatever the event loop. Tracebacks and the chain of awaits stay as they are.

Only code objects that contain a scope are monitored, and they stay so: disabling the events again would make the
interpreter instrument each of their frames anew. `PY_THROW` exists for all code or none; it is on from the first scope.
"""

import sys
from types import CodeType, FrameType
from typing import Final

from memtools.ledger._context import Suspension
from memtools.ledger._owner import Owner

_TOOL_IDS: Final = (4, 3)  # those that no known tool has by convention (PEP 669)
_caller = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; the events name no frame
_COROUTINE: Final = 0x80 | 0x100  # inspect.CO_COROUTINE | CO_ITERABLE_COROUTINE
_LEFT_OPEN: Final = "its frame ended before it: process-wide"


class _FrameScopes(Suspension):
    """One frame and the scopes that are open in it, innermost last."""

    __slots__ = ("_key", "owners")

    def __init__(self, key: int, owner: Owner, previous_active: Owner | None) -> None:
        super().__init__(owner, previous_active)
        self._key = key
        self.owners: list[Owner] = []

    def add(self, owner: Owner) -> None:
        self.owners.append(owner)
        self.owner = owner
        owner.suspension = self

    def release(self, owner: Owner) -> tuple[Owner | None, Owner | None]:
        owner.suspension = None
        self.owners.remove(owner)
        if self.owners:
            self.owner = self.owners[-1]
            return self.owner, owner.parent
        _scopes_by_frame.pop(self._key, None)
        return self.previous, self.previous_active


# By the id of the frame: a reference would keep the frame alive, and a scope ends before its frame does.
_scopes_by_frame: dict[int, _FrameScopes] = {}


def attach(frame: FrameType, owner: Owner, previous_active: Owner | None) -> None:
    """Suspend and resume `owner`, which has just become the current one, with `frame`."""
    key = id(frame)
    unowned_before = owner.unowned_before
    scopes = _scopes_by_frame.get(key)
    if scopes is None:
        scopes = _scopes_by_frame[key] = _FrameScopes(key, owner, previous_active)
    scopes.add(owner)
    if frame.f_code.co_flags & _COROUTINE:
        owner.unowned_before = unowned_before  # its consumer is a loop, which runs tasks that may be its children
    _enable_events(frame.f_code)


def _find_tool() -> int | None:
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is None:
        return None
    for tool in _TOOL_IDS:
        if monitoring.get_tool(tool) in (None, "memtools"):
            return tool
    return None


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _tool: int | None = None

    def is_available() -> bool:
        """Return whether frames can be tracked; takes one of the free tool ids at the first call."""
        global _tool
        if _tool is not None:
            return True
        tool = _find_tool()
        if tool is None:
            return False
        _monitoring.use_tool_id(tool, "memtools")
        events = _monitoring.events
        _monitoring.register_callback(tool, events.PY_YIELD, _on_yield)
        _monitoring.register_callback(tool, events.PY_RESUME, _on_resume)
        _monitoring.register_callback(tool, events.PY_THROW, _on_throw)
        _monitoring.register_callback(tool, events.PY_RETURN, _on_return)
        _monitoring.set_events(tool, events.PY_THROW)
        _tool = tool
        return True

    def _enable_events(code: CodeType) -> None:
        assert _tool is not None  # `is_available` comes first
        events = _monitoring.events
        wanted = events.PY_YIELD | events.PY_RESUME | events.PY_RETURN
        if _monitoring.get_local_events(_tool, code) != wanted:
            _monitoring.set_local_events(_tool, code, wanted)

else:

    def is_available() -> bool:
        """Return False: `sys.monitoring` came with Python 3.12."""
        return False

    def _enable_events(_code: CodeType) -> None:
        raise AssertionError("is_available() returned False")


def _on_yield(_code: CodeType, _offset: int, _value: object) -> None:
    scopes = _scopes_by_frame.get(id(_caller(1)))
    if scopes is not None:
        scopes.suspend()


def _on_resume(_code: CodeType, _offset: int) -> None:
    scopes = _scopes_by_frame.get(id(_caller(1)))
    if scopes is not None:
        scopes.resume()


def _on_throw(_code: CodeType, _offset: int, _error: BaseException) -> None:
    if _scopes_by_frame:
        scopes = _scopes_by_frame.get(id(_caller(1)))
        if scopes is not None:
            scopes.resume()


def _on_return(_code: CodeType, _offset: int, _value: object) -> None:
    # A function may open a scope for its caller, and the caller's frame is not monitored.
    scopes = _scopes_by_frame.pop(id(_caller(1)), None)
    if scopes is not None:
        for owner in reversed(scopes.owners):
            owner.suspension = None
            owner.meter.mark_untracked(owner, _LEFT_OPEN)
