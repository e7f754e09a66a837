"""The registry of functions that run in a child process after a fork.

A fork copies every lock in its state, so a lock that another thread held is never released in the child, and of the
threads it copies only the calling one. A fork by C code that does not run Python's hooks is not seen here; the readings
detect it by their process token.

A file of its own because every package that has a lock or a thread uses it.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import ref

T = TypeVar("T")


class _Registration(ref[Any]):  # Any: a class of any kind can register its objects
    """One object in the registry; hashed by identity, since the object may be unhashable."""

    __slots__ = ("renew",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    renew: Callable[[Any], None]

    def call(self) -> None:
        target = self()
        if target is not None:
            self.renew(target)


_registrations: set[_Registration] = set()
_functions: list[Callable[[], object]] = []

# A C method: it takes no lock and runs no Python code in the thread that drops the last reference.
_discard: Callable[[_Registration], None] = _registrations.discard


def register_after_fork(renew: Callable[[], object]) -> None:
    """Call `renew()` in each forked child, in the order of registration; the registration never ends."""
    _functions.append(renew)


def register_object_after_fork(target: T, renew: Callable[[T], None]) -> None:
    """Call `renew(target)` in each child that is forked while `target` lives; `target` is held weakly."""
    registration = _Registration(target, _discard)
    registration.renew = renew
    _registrations.add(registration)


def _renew_all() -> None:
    calls = [*_functions, *(registration.call for registration in _registrations.copy())]
    first_error: Exception | None = None
    for call in calls:
        try:
            call()
        except Exception as error:  # the remaining functions still have to run
            first_error = first_error or error
    if first_error is not None:
        raise first_error  # the interpreter reports it as unraisable, and the child goes on


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_all)
