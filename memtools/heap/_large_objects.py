"""Large objects: buffers, texts and arrays of 64 KiB and more.

A list of a dozen images is short, and nothing in it is tracked by the garbage collector: lengths of containers and
numbers of objects by type do not show it. Large objects are found among the referents of other objects.
"""

import array
import gc
import sys
from collections.abc import Callable, Iterator
from itertools import compress
from operator import not_
from typing import Any, Final

from memtools.heap._inspect import (
    OwnDict,
    all_objects,
    attribute_of,
    is_own_frame,
    is_static,
    real_type,
    skip_modules,
)

LARGE_BYTES: Final = 64 << 10
_OBJECTS_PER_SLICE: Final = 25_000
_UNTRACKED: Final = (dict, tuple)  # the garbage collector does not track those of plain values only
_BUFFERS: Final[tuple[Any, ...]] = (bytes, bytearray, str, array.array)


def buffer_types() -> tuple[Any, ...]:  # Any: the stubs do not say that each has a `__sizeof__` of its own
    """Return the types of which one object can be large.

    These are `bytes`, `bytearray`, `str`, `array.array` and, where numpy is loaded, `numpy.ndarray`, which counts the
    data that the array owns. Subclasses are not among them: their `__sizeof__` may be code of the program.
    """
    ndarray = attribute_of(sys.modules.get("numpy"), "ndarray")
    return (*_BUFFERS, ndarray) if issubclass(real_type(ndarray), type) and is_static(ndarray) else _BUFFERS


def untracked_among(referents: list[Any], types: list[int], kind: type) -> list[Any]:  # Any: foreign objects
    """Return those of one type that the garbage collector does not track.

    Args:
        referents: any objects.
        types: the address of the type of each.
        kind: `dict` or `tuple`.
    """
    found = list(compress(referents, map(id(kind).__eq__, types)))
    return list(compress(found, map(not_, map(gc.is_tracked, found))))


class LargeObjects:
    """The large objects of the heap, as far as it was looked through.

    Attributes:
        found: (address of the type, bytes) by address of the object.
    """

    def __init__(self) -> None:
        self.found: dict[int, tuple[int, int]] = OwnDict()
        self._types: dict[int, type] = {id(kind): kind for kind in buffer_types()}

    def add(self, referents: list[Any], types: list[int]) -> None:  # Any: foreign objects
        """Add the large ones among the referents of some objects.

        Args:
            referents: the objects.
            types: the address of the type of each.
        """
        for kind, cls in self._types.items():
            buffers = list(compress(referents, map(kind.__eq__, types)))
            sizes: list[int] = list(map(_size_of(cls), buffers))
            for buffer, size in compress(zip(buffers, sizes, strict=True), map(LARGE_BYTES.__le__, sizes)):
                self.found[id(buffer)] = (kind, size)

    def type_at(self, address: int) -> type:
        """Return the type of an address that is in `found`."""
        return self._types[address]


def find_untracked(wanted: set[int]) -> tuple[list[Any], dict[int, Any]]:  # Any: foreign objects
    """Return objects that the garbage collector does not track, and what no walk over referrers would find of them.

    Args:
        wanted: the addresses of the objects.

    Returns:
        The objects; and by the address of an object, an untracked dict or tuple that holds it.
    """
    found: dict[int, Any] = OwnDict()
    holders: dict[int, Any] = OwnDict()
    objects = all_objects()
    while objects and len(found) < len(wanted):
        part = [held for held in skip_modules(objects[-_OBJECTS_PER_SLICE:]) if not is_own_frame(held)]
        del objects[-_OBJECTS_PER_SLICE:]
        referents = gc.get_referents(*part)
        found.update((id(held), held) for held in _only(wanted, referents))
        types = list(map(id, map(type, referents)))
        for kind in _UNTRACKED:
            between = untracked_among(referents, types, kind)
            for held in _only(wanted, gc.get_referents(*between)):
                if id(held) not in found:
                    found[id(held)] = held
                    holders[id(held)] = next(
                        one for one in between if any(each is held for each in gc.get_referents(one))
                    )
    return list(found.values()), holders


def _only(wanted: set[int], objects: list[Any]) -> Iterator[Any]:
    return compress(objects, map(wanted.__contains__, map(id, objects)))


def _size_of(kind: Any) -> Callable[[Any], int]:  # Any: not all of them have a `__sizeof__` in their own dict
    return kind.__sizeof__  # type: ignore[no-any-return]
