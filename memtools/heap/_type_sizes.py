"""The heap by type: how many bytes the objects of each class take, estimated in one walk.

Objects that the garbage collector does not track (texts, numbers, bytes) are met once for each reference to them. To
count none twice, each reference adds its share, one part of the reference count, and no table of all objects is needed:
the walk takes a bounded amount of memory, whatever the size of the heap.
"""

import gc
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import compress
from typing import Any, Final

from memtools._records import as_dict, record
from memtools.heap._inspect import OwnDict, all_objects, is_static, real_type, skip_modules, type_name
from memtools.heap._large_objects import untracked_among

_OBJECTS_PER_SLICE: Final = 10_000
_GC_HEAD: Final = 16  # bytes in front of each tracked object
_basic_size_of: Final[Any] = type.__dict__["__basicsize__"].__get__


@record
class TypeSize:
    """What the objects of one class take together.

    Attributes:
        name: the name of the class, with its module unless it is built in.
        objects: about how many there are.
        size_bytes: about how many bytes they take, without what they refer to.
    """

    name: str
    objects: int
    size_bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


def sizes_by_type(limit: int = 40) -> tuple[TypeSize, ...]:
    """Return the classes whose objects take most, the largest first, and all others together as the last.

    Cost: walks all objects of the process under the GIL, about two seconds for each million: for a report.
    """
    walk = _Walk()
    objects = all_objects()
    while objects:
        walk.add(objects[-_OBJECTS_PER_SLICE:])
        del objects[-_OBJECTS_PER_SLICE:]
    found = sorted(walk.sizes(), key=lambda one: (-one.size_bytes, one.name))
    shown, others = found[:limit], found[limit:]
    if others:
        name = f"{len(others):,} other types"
        shown.append(TypeSize(name, sum(one.objects for one in others), sum(one.size_bytes for one in others)))
    return tuple(shown)


class _Walk:
    """The sums so far, by the address of the class."""

    def __init__(self) -> None:
        self._classes: dict[int, type] = OwnDict()
        self._sizes: dict[int, float] = OwnDict()
        self._numbers: dict[int, float] = OwnDict()

    def add(self, objects: list[Any]) -> None:  # Any: foreign objects
        self._sum(objects)
        referents = gc.get_referents(*skip_modules(objects))
        self._sum_shares(referents)
        addresses = list(map(id, map(type, referents)))
        inner = [*untracked_among(referents, addresses, dict), *untracked_among(referents, addresses, tuple)]
        self._sum_shares(gc.get_referents(*dict(zip(map(id, inner), inner, strict=True)).values()))

    def sizes(self) -> Iterable[TypeSize]:
        for address, cls in self._classes.items():
            if cls is not OwnDict and self._sizes[address] >= 1:
                yield TypeSize(type_name(cls), round(self._numbers[address]), round(self._sizes[address]))

    def _sum(self, objects: list[Any]) -> None:
        types = list(map(type, objects))
        for cls, count in _by_class(types):
            self._record(cls, count, count * _GC_HEAD + self._bytes_of(cls, objects, types, count))

    def _bytes_of(self, cls: type, objects: list[Any], types: list[type], count: int) -> float:
        # Only C code is called: the `__sizeof__` of a class that is made by C code once and for all.
        if not is_static(cls):
            return float(_basic_size_of(cls)) * count
        found = compress(objects, map(id(cls).__eq__, map(id, types)))
        size_of: Any = cls.__sizeof__  # Any: it takes an instance, as every method of a class
        return float(sum(map(size_of, found)))

    def _sum_shares(self, referents: list[Any]) -> None:
        untracked = [one for one in referents if not gc.is_tracked(one)]
        times = Counter(map(id, untracked))
        unique: dict[int, Any] = OwnDict(zip(map(id, untracked), untracked, strict=True))
        del untracked, referents
        for address in list(unique):
            one = unique.pop(address)
            cls = real_type(one)
            if not is_static(cls):
                continue
            # Without those of the two lists of the caller and the variable here.
            references = max(sys.getrefcount(one) - times[address] - 2, times[address])
            share = times[address] / references
            self._record(cls, share, share * sys.getsizeof(one))

    def _record(self, cls: type, count: float, size: float) -> None:
        address = id(cls)
        self._classes[address] = cls
        self._numbers[address] = self._numbers.get(address, 0.0) + count
        self._sizes[address] = self._sizes.get(address, 0.0) + size


def _by_class(types: list[type]) -> Iterable[tuple[type, int]]:
    counts = Counter(map(id, types))
    classes = dict(zip(map(id, types), types, strict=True))
    return [(classes[address], count) for address, count in counts.items()]
