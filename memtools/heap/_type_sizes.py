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
from operator import not_
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
        self._static: dict[int, bool] = OwnDict()
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
        for address, size in self._sizes.items():
            cls = self._classes[address]
            if cls is not OwnDict and size >= 1:
                yield TypeSize(type_name(cls), round(self._numbers[address]), round(size))

    def _sum(self, objects: list[Any]) -> None:
        types = list(map(type, objects))
        addresses = list(map(id, types))
        self._record_classes(addresses, types)
        for address, count in Counter(addresses).items():
            basic = 0 if self._static[address] else count * (int(_basic_size_of(self._classes[address])) + _GC_HEAD)
            self._record(address, count, basic)
        # Only C code is called: the `__sizeof__` of a class that is made by C code once and for all.
        static = compress(zip(addresses, objects, strict=True), map(self._static.__getitem__, addresses))
        sizes: dict[int, int] = {}
        for address, one in static:
            sizes[address] = sizes.get(address, 0) + sys.getsizeof(one, 0)
        for address, size in sizes.items():
            self._record(address, 0, size)

    def _sum_shares(self, referents: list[Any]) -> None:
        untracked = list(compress(referents, map(not_, map(gc.is_tracked, referents))))
        types = list(map(type, untracked))
        self._record_classes(list(map(id, types)), types)
        times = Counter(map(id, untracked))
        unique: dict[int, Any] = OwnDict(zip(map(id, untracked), untracked, strict=True))
        del untracked, referents
        while unique:
            address, one = unique.popitem()
            kind = id(real_type(one))
            if not self._static[kind]:
                continue
            # Without those of the lists here and of the caller, and of the variable.
            references = max(sys.getrefcount(one) - times[address] - 2, times[address])
            share = times[address] / references
            self._record(kind, share, share * sys.getsizeof(one, 0))

    def _record_classes(self, addresses: list[int], types: list[type]) -> None:
        for address, cls in dict(zip(addresses, types, strict=True)).items():
            if address not in self._classes:
                self._classes[address] = cls
                self._static[address] = is_static(cls)

    def _record(self, address: int, count: float, size: float) -> None:
        self._numbers[address] = self._numbers.get(address, 0.0) + count
        self._sizes[address] = self._sizes.get(address, 0.0) + size
