"""Find again what was counted, and pick objects to climb from.

Covers: the container at an address, the newest objects of a type, and which of them are nobody's leak.
Leaves to others: climbing (`_climbing`).
"""

import gc
import weakref
from itertools import compress
from typing import Any, Final

from memtools.heap._census import Growing
from memtools.heap._looking import (
    ITERATORS,
    LENGTHS,
    REVERSED,
    all_objects,
    class_of,
    kind_of,
    newest_items,
    type_name,
    without_modules,
)

_SLICE: Final = 50_000


def at_addresses(wanted: dict[int, Growing]) -> list[Any]:  # Any: strangers
    """Return the containers that are still at their addresses, of the same type."""
    found = _among(all_objects(), wanted)
    if len(found) < len(wanted):
        found += _among_untracked(wanted.keys() - {id(one) for one in found}, wanted)
    return found


def _among(objects: list[Any], wanted: dict[int, Growing]) -> list[Any]:
    candidates = list(compress(objects, map(wanted.__contains__, map(id, objects))))
    return [one for one in candidates if type_name(class_of(one)) == wanted[id(one)].type_name]


def _among_untracked(missing: set[int], wanted: dict[int, Growing]) -> list[Any]:
    found: dict[int, Any] = {}
    objects = all_objects()
    while objects and len(found) < len(missing):
        referents = gc.get_referents(*without_modules(objects[-_SLICE:]))
        del objects[-_SLICE:]
        known = compress(referents, map(missing.__contains__, map(id, referents)))
        found.update((id(one), one) for one in known if class_of(one) is dict)
    return [one for one in found.values() if wanted[id(one)].type_name == "dict"]


def newest_of(cls: type, most: int) -> tuple[list[Any], int]:
    """Return up to `most` of the youngest objects of exactly this class, and how many there are."""
    mine: list[Any] = []
    alive = 0
    for generation in range(3):
        objects = all_objects(generation)
        found = list(compress(objects, map(id(cls).__eq__, map(id, map(type, objects)))))
        alive += len(found)
        mine += found[: -most - 1 : -1]  # within a generation the youngest come last
    return mine[:most], alive


def type_called(name: str) -> type | None:
    """Return the class of the youngest object whose class has this name, as `type_name` tells it."""
    classes: dict[int, type] = {}
    for generation in range(3):
        types = list(map(type, all_objects(generation)))
        classes.update(zip(map(id, types), types, strict=True))
    return next((cls for cls in classes.values() if type_name(cls) == name), None)


def is_weak_inside(container: Any) -> bool:
    """Return whether a container is the inside of a weak set or mapping: what it lists is kept by others."""
    newest = newest_in(container)
    return newest is not None and any(issubclass(class_of(one), weakref.ref) for one in newest)


def newest_in(container: Any) -> tuple[Any, Any] | None:
    """Return key and value of the newest item; a list's key is None, and so is a set's."""
    kind = kind_of(class_of(container))
    if kind is None or not LENGTHS[kind](container):
        return None
    try:
        if kind is dict:
            return next(newest_items(container), None)
        return None, next((ITERATORS.get(kind) or REVERSED[kind])(container))
    except (StopIteration, RuntimeError):
        return None
