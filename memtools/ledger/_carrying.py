"""Take the owner along to another thread.

`asyncio.to_thread` copies the context, so a scope that is opened in the worker has the right parent; but what the
worker allocates outside of any scope is charged to whoever has the turn in the loop's thread (48 of 60 MB to a
bystander). A carried function has the turn in the thread that runs it.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from memtools.ledger._current import active, active_owner, give_turn, per_thread
from memtools.ledger._owner import Owner
from memtools.ledger._seats import native_seats
from memtools.ledger._tally import share

P = ParamSpec("P")
R = TypeVar("R")

_native = native_seats()


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, charged to the owner that is active here, whichever thread calls it.

    Without an active owner the function itself is returned.
    """
    owner = active_owner()
    if owner is None:
        return function
    return cast("Callable[P, R]", _Carried(function, owner))


class _Carried:
    """A call that brings its owner along. A class, so that a repr in a log still names the function."""

    __slots__ = ("_function", "_owner")

    def __init__(self, function: Callable[..., object], owner: Owner) -> None:
        self._function = function
        self._owner = owner

    def __call__(self, *args: object, **kwargs: object) -> object:
        before_active = active.get()
        active.set(self._owner)
        owner = active_owner()  # the one that brought it may have ended in the queue
        charged = owner.charged if owner is not None else None
        try:
            if charged is None:
                return self._function(*args, **kwargs)
            return _charged_call(charged, self._function, args, kwargs)
        finally:
            active.set(before_active)

    def __repr__(self) -> str:
        return f"<{self._function!r} for {self._owner!r}>"


def _charged_call(
    owner: Owner, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    slot = per_thread.slot
    before = slot.owner
    share(owner)  # the thread that it comes from goes on beside this one
    if owner.budgeted is not None and _native is not None:
        _native.get_ready()
    give_turn(slot, owner)
    try:
        return function(*args, **kwargs)
    finally:
        give_turn(slot, before)
