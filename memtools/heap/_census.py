"""Census of the heap: lengths of containers, numbers of objects by type.

A census holds numbers and names, never an object: a container is known by its address and is found again by it. Because
an address may be used again, type and length are compared as well.

A census takes about 0.3 s for 750,000 objects, in slices of at most some 50 ms.
"""

import gc
import linecache
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress
from operator import not_
from typing import Any, Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.heap._inspect import (
    ITERATORS,
    LENGTHS,
    REVERSE_ITERATORS,
    all_objects,
    container_kind,
    newest_items,
    real_type,
    skip_modules,
    type_name,
)
from memtools.units import parse_count

MIN_LENGTH: Final = 64  # shorter containers are most of the heap, and hardly ever a leak
MIN_GROWTH: Final = 16  # items or objects; any program grows by fewer meanwhile
_OBJECTS_PER_SLICE: Final = 25_000  # with their referents some 10 ms
_OBJECTS_PER_SEARCH: Final = 50_000

# Types that grow along with any container or instance, and say nothing by themselves.
_EVERYDAY: Final = frozenset(
    ("dict", "list", "tuple", "set", "frozenset", "cell", "function", "weakref.ReferenceType", "method",
     "builtin_function_or_method", "code", "generator", "coroutine", "collections.deque", "frame")
)  # fmt: skip

_IS_DICT: Final = id(dict).__eq__


class _OwnDict(dict[int, Any]):  # Any: numbers and names
    """A dict of this package, which no census counts."""

    __slots__ = ()


@record
class Census:
    """The containers and types that lived at one moment; numbers and names, no objects.

    Attributes:
        containers: (address of the type, length) of each container of at least 64 items (or of `minimum`), by address.
        types: the number of objects of each type, by the address of the type.
        names: the names of the types, by the address of the type.
        objects: how many objects were counted.
        at: when the census ended, in seconds of `time.monotonic()`.
    """

    containers: dict[int, tuple[int, int]]
    types: dict[int, int]
    names: dict[int, str]
    objects: int
    at: float

    def __str__(self) -> str:
        largest = sorted(self.types.items(), key=lambda item: -item[1])[:10]
        lines = [f"{self.objects:,} objects, {len(self.containers):,} containers of {MIN_LENGTH} items or more"]
        lines += [f"{count:>12,}  {self.names[kind]}" for kind, count in largest]
        return "\n".join(lines)


@record
class HeapGrowth:
    """A container with more items, or a type with more objects, than at an earlier census.

    Attributes:
        type_name: the type of the container, or the type itself.
        before: the number of items or objects at the first census.
        after: the same at the last census.
        per_second: items or objects per second.
        address: the address of the container; 0 for a type.
    """

    type_name: str
    before: int
    after: int
    per_second: float
    address: int = 0

    def __str__(self) -> str:
        what = "items" if self.address else "objects"
        return f"{self.type_name} +{self.per_second:,.3g} {what}/s ({self.after:,} now)"


def heap_census(*, minimum: int = MIN_LENGTH) -> Census:
    """Count all containers and all objects by type.

    Args:
        minimum: the number of items from which on a container is counted.

    Raises:
        ConfigError: if `minimum` is not a whole number of at least 1.
    """
    steps = count_in_slices(minimum=minimum)
    while (counted := next(steps)) is None:
        pass
    return counted


def count_in_slices(*, minimum: int = MIN_LENGTH) -> Iterator[Census | None]:
    """Yield None after each slice of the heap, and the census at the end, so that the caller can pause between slices.

    Args:
        minimum: the number of items from which on a container is counted.

    Raises:
        ConfigError: if `minimum` is not a whole number of at least 1, at the first step.
    """
    builder = _CensusBuilder(parse_count(minimum, name="minimum"))
    objects = all_objects()
    while objects:
        builder.add(objects[-_OBJECTS_PER_SLICE:])
        del objects[-_OBJECTS_PER_SLICE:]  # objects that only this list kept alive die here, a slice at a time
        yield None
    yield builder.build()


class _CensusBuilder:
    """The counts so far. All loops over objects are loops in C, which run no code of the objects."""

    def __init__(self, minimum: int) -> None:
        self._is_long = minimum.__le__
        self._kinds: dict[int, type | None] = _OwnDict()  # by address of a type: the built-in container that it is
        self._names: dict[int, str] = _OwnDict()
        self._types: dict[int, int] = _OwnDict()
        self._containers: dict[int, tuple[int, int]] = _OwnDict()
        self._objects = 0

    def add(self, objects: list[Any]) -> None:  # Any: foreign objects
        types = list(map(type, objects))
        addresses = list(map(id, types))
        self._objects += len(objects)
        for address, number in Counter(addresses).items():
            self._types[address] = self._types.get(address, 0) + number
        self._record_types(dict(zip(addresses, types, strict=True)))
        for kind in LENGTHS:
            wanted = {address for address, found in self._kinds.items() if found is kind}
            self._measure(kind, list(compress(objects, map(wanted.__contains__, addresses))))

        # The garbage collector does not track a dict of plain values only: it is found as a referent of other objects.
        referents = gc.get_referents(*skip_modules(objects))
        dicts = list(compress(referents, map(_IS_DICT, map(id, map(type, referents)))))
        self._measure(dict, list(compress(dicts, map(not_, map(gc.is_tracked, dicts)))))

    def _record_types(self, types: dict[int, type]) -> None:
        for address, cls in types.items():
            if address not in self._kinds:
                self._kinds[address] = container_kind(cls) if cls is not _OwnDict else None
                self._names[address] = type_name(cls)

    def _measure(self, kind: type, containers: list[Any]) -> None:
        lengths = list(map(LENGTHS[kind], containers))
        for container, length in compress(zip(containers, lengths, strict=True), map(self._is_long, lengths)):
            cls = real_type(container)
            self._containers[id(container)] = (id(cls), length)
            self._names.setdefault(id(cls), type_name(cls))

    def build(self) -> Census:
        self._types.pop(id(_OwnDict), None)
        return Census(self._containers, self._types, self._names, self._objects, time.monotonic())


def growth_between(*counts: Census, limit: int = 10, minimum: int = MIN_GROWTH) -> tuple[HeapGrowth, ...]:
    """Return what grew from each census to the next: containers, then types, each sorted by rate.

    Containers and types that the first census has come before new ones. A container that was shorter in between is left
    out: it is in use, and no leak.

    Args:
        counts: two or more, in the order in which they were taken; 10 to 30 s apart for a service.
        limit: how many containers and how many types to return at most.
        minimum: how many items or objects more there must be.

    Raises:
        ConfigError: for fewer than two.
    """
    if len(counts) < 2:
        raise ConfigError("counts", len(counts), "two or more results of heap_census()")
    seconds = max(counts[-1].at - counts[0].at, 1e-9)
    return (*_containers(counts, seconds, minimum)[:limit], *_types(counts, seconds, minimum)[:limit])


def _containers(counts: Sequence[Census], seconds: float, minimum: int) -> list[HeapGrowth]:
    found: list[HeapGrowth] = []
    for address, (cls, after) in counts[-1].containers.items():
        lengths = _lengths(counts, address, cls)
        if lengths is None or after - lengths[0] < minimum or lengths != sorted(lengths):
            continue
        found.append(HeapGrowth(counts[-1].names[cls], lengths[0], after, (after - lengths[0]) / seconds, address))
    return sorted(found, key=_rate)


def _lengths(counts: Sequence[Census], address: int, cls: int) -> list[int] | None:
    lengths: list[int] = []
    for count in counts:
        kind, length = count.containers.get(address, (cls, 0))
        if kind != cls:
            return None  # another object had the address before
        lengths.append(length)
    return lengths


def _types(counts: Sequence[Census], seconds: float, minimum: int) -> list[HeapGrowth]:
    found: list[HeapGrowth] = []
    for cls, after in counts[-1].types.items():
        name = counts[-1].names[cls]
        if name in _EVERYDAY or name.startswith("memtools.heap."):
            continue
        numbers = [count.types.get(cls, 0) for count in counts]
        if after - numbers[0] >= minimum and numbers == sorted(numbers):
            found.append(HeapGrowth(name, numbers[0], after, (after - numbers[0]) / seconds))
    return sorted(found, key=_rate)


def _rate(growth: HeapGrowth) -> tuple[bool, float]:
    # Growth of what existed before says more than what is new.
    return (not growth.before, -growth.per_second)


def find_by_address(wanted: dict[int, HeapGrowth]) -> list[Any]:  # Any: foreign objects
    """Return the containers that are still at their addresses, of the same type."""
    found = _among(all_objects(), wanted)
    if len(found) < len(wanted):
        found += _among_untracked(wanted.keys() - set(map(id, found)), wanted)
    return found


def _among(objects: list[Any], wanted: dict[int, HeapGrowth]) -> list[Any]:
    candidates = list(compress(objects, map(wanted.__contains__, map(id, objects))))
    return [found for found in candidates if type_name(real_type(found)) == wanted[id(found)].type_name]


def _among_untracked(missing: set[int], wanted: dict[int, HeapGrowth]) -> list[Any]:
    found: dict[int, Any] = {}
    objects = all_objects()
    while objects and len(found) < len(missing):
        referents = gc.get_referents(*skip_modules(objects[-_OBJECTS_PER_SEARCH:]))
        del objects[-_OBJECTS_PER_SEARCH:]
        known = compress(referents, map(missing.__contains__, map(id, referents)))
        found.update((id(referent), referent) for referent in known if real_type(referent) is dict)
    return [container for container in found.values() if wanted[id(container)].type_name == "dict"]


def newest_instances(cls: type, limit: int) -> tuple[list[Any], int]:
    """Return up to `limit` of the youngest objects of exactly this class, and how many there are."""
    newest: list[Any] = []
    alive = 0
    for generation in range(3):
        objects = all_objects(generation)
        found = list(compress(objects, map(id(cls).__eq__, map(id, map(type, objects)))))
        alive += len(found)
        newest += found[: -limit - 1 : -1]  # within a generation the youngest come last
    return newest[:limit], alive


def find_type(name: str) -> type | None:
    """Return the class of the youngest object whose class has this name, as `type_name` returns it."""
    classes: dict[int, type] = {}
    for generation in range(3):
        types = list(map(type, all_objects(generation)))
        classes.update(zip(map(id, types), types, strict=True))
    return next((cls for cls in classes.values() if type_name(cls) == name), None)


def is_weak_storage(container: Any) -> bool:
    """Return whether a container is the storage of a weak set or mapping, which does not keep its items alive."""
    newest = newest_item(container)
    return newest is not None and any(issubclass(real_type(part), weakref.ref) for part in newest)


def newest_item(container: Any) -> tuple[Any, Any] | None:
    """Return key and value of the newest item of a container; the key is None but for a dict."""
    kind = container_kind(real_type(container))
    if kind is None or not LENGTHS[kind](container):
        return None
    try:
        if kind is dict:
            return next(newest_items(container), None)
        return None, next((ITERATORS.get(kind) or REVERSE_ITERATORS[kind])(container))
    except (StopIteration, RuntimeError):
        return None


def largest_containers(limit: int = 5, *, minimum: int = 1000) -> list[Any]:  # Any: foreign objects
    """Return the longest containers, the longest first; the caller holds them, and should release them soon.

    The storage of weak sets and mappings is left out, and so are tables of the interpreter.

    Args:
        limit: how many containers to return at most.
        minimum: the number of items from which on a container is considered.

    Raises:
        ConfigError: if `minimum` is not a whole number of at least 1.
    """
    counted = heap_census(minimum=minimum)
    # More than `limit`, because some are left out below.
    longest = sorted(counted.containers.items(), key=lambda item: item[1][1], reverse=True)[: 2 * limit + 8]
    wanted = {address: HeapGrowth(counted.names[cls], 0, length, 0.0, address) for address, (cls, length) in longest}
    found = {id(container): container for container in find_by_address(wanted) if not _is_no_leak(container)}
    return [found[address] for address in wanted if address in found][:limit]


def _is_no_leak(container: object) -> bool:
    return container is sys.modules or container is linecache.cache or is_weak_storage(container)
