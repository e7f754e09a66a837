"""Follow a scope through the frame that holds its `with`, by `sys.monitoring` (Python 3.12 and later).

A plain `async with memory_scope()` stands in a coroutine that nobody drives, or in a generator whose consumer runs
between its steps. The interpreter tells when that code object yields and resumes: the turn is given back and taken
again, whatever the event loop. Tracebacks and the chain of awaits stay as they are.

Only code objects that hold a scope are watched, and they stay so: switching the events off again would make the
interpreter look at each of their frames anew. `PY_THROW` exists for all code or none; it is on from the first scope.
"""

import sys
from types import CodeType, FrameType
from typing import Final

from memtools.ledger._context import Suspension
from memtools.ledger._owner import Owner

_TOOL_IDS: Final = (4, 3)  # those that no known tool has by convention (PEP 669)
_caller = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; the events name no frame
_LEFT_OPEN: Final = "its frame ended before it: process-wide"


class _Holder(Suspension):
    """One frame and the scopes that it holds open, innermost last."""

    __slots__ = ("_key", "owners")

    def __init__(self, key: int, owner: Owner, active_before: Owner | None) -> None:
        super().__init__(owner, active_before)
        self._key = key
        self.owners: list[Owner] = []

    def add(self, owner: Owner) -> None:
        self.owners.append(owner)
        self.owner = owner
        owner.turn = self

    def let_go(self, owner: Owner) -> tuple[Owner | None, Owner | None]:
        owner.turn = None
        self.owners.remove(owner)
        if self.owners:
            self.owner = self.owners[-1]
            return self.owner, owner.parent
        _holders.pop(self._key, None)
        return self.before, self.active_before


# By the id of the frame: a reference would keep the frame alive, and a scope ends before its frame does.
_holders: dict[int, _Holder] = {}


def hold(frame: FrameType, owner: Owner, active_before: Owner | None) -> None:
    """Follow `owner`, which has just got the turn, through the yields of `frame`."""
    key = id(frame)
    holder = _holders.get(key)
    if holder is None:
        holder = _holders[key] = _Holder(key, owner, active_before)
    holder.add(owner)
    _watch(frame.f_code)


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

    def can_follow() -> bool:
        """Return whether frames can be followed; takes one of the free tool ids when first asked."""
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

    def _watch(code: CodeType) -> None:
        assert _tool is not None  # `can_follow` comes first
        events = _monitoring.events
        wanted = events.PY_YIELD | events.PY_RESUME | events.PY_RETURN
        if _monitoring.get_local_events(_tool, code) != wanted:
            _monitoring.set_local_events(_tool, code, wanted)

else:

    def can_follow() -> bool:
        """Return False: `sys.monitoring` came with Python 3.12."""
        return False

    def _watch(_code: CodeType) -> None:
        raise AssertionError("can_follow() said no")


def _on_yield(_code: CodeType, _offset: int, _value: object) -> None:
    holder = _holders.get(id(_caller(1)))
    if holder is not None:
        holder.give_back()


def _on_resume(_code: CodeType, _offset: int) -> None:
    holder = _holders.get(id(_caller(1)))
    if holder is not None:
        holder.take()


def _on_throw(_code: CodeType, _offset: int, _error: BaseException) -> None:
    if _holders:
        holder = _holders.get(id(_caller(1)))
        if holder is not None:
            holder.take()


def _on_return(_code: CodeType, _offset: int, _value: object) -> None:
    # A function may open a scope for its caller. From here on nobody can say when that one is suspended.
    holder = _holders.pop(id(_caller(1)), None)
    if holder is not None:
        for owner in reversed(holder.owners):
            owner.turn = None
            owner.meter.set_adrift(owner, _LEFT_OPEN)
