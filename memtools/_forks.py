"""Put objects in order in a child process after a fork.

Covers: the weak register of those to be put in order.
Leaves to others: what has to be put in order.

A fork copies the locks as they were, held for ever if another thread was at work, and of the threads only the one that
forked.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import ref

T = TypeVar("T")


class _Place(ref[Any]):  # any class that knows how to put its own objects in order
    """One thing's place in the register; hashes by itself, as the thing may be unhashable."""

    __slots__ = ("renew",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    renew: Callable[[Any], None]


_places: set[_Place] = set()

# A C method: it takes no lock and runs no Python code in whatever dropped the last reference.
_give_up: Callable[[_Place], None] = _places.discard


def renew_in_children(thing: T, renew: Callable[[T], None]) -> None:
    """Have `renew(thing)` called in each child that is forked while `thing` lives; it is held weakly."""
    place = _Place(thing, _give_up)
    place.renew = renew
    _places.add(place)


def _renew_all() -> None:
    for place in _places.copy():
        thing = place()
        if thing is not None:
            place.renew(thing)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_all)
