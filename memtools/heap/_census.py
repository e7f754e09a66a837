"""Census of the heap: lengths of containers, numbers of objects by type.

A census holds numbers and names, never an object: a container is known by its address and is found again by it. Because
an address may be used again, type and length are compared as well.

A census takes about 0.3 s for 750,000 objects, in slices of at most some 50 ms.
"""

import gc
import sys
import time
import types
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import chain, compress, islice
from typing import Any, Final

from memtools._records import record
from memtools.errors import ConfigError
from memtools.heap._inspect import (
    ITERATORS,
    LENGTHS,
    REVERSE_ITERATORS,
    OwnDict,
    all_objects,
    container_kind,
    instance_dict,
    newest_items,
    real_type,
    skip_modules,
    type_name,
)
from memtools.heap._large_objects import LARGE_BYTES, LargeObjects, find_untracked, untracked_among
from memtools.units import format_size, parse_count

MIN_LENGTH: Final = 64  # shorter containers are most of the heap, and hardly ever a leak
MIN_GROWTH: Final = 16  # items or objects; any program grows by fewer meanwhile
_OBJECTS_PER_SLICE: Final = 25_000  # with their referents some 10 ms

# Types that grow along with any container or instance, and say nothing by themselves.
_EVERYDAY: Final = frozenset(
    ("dict", "list", "tuple", "set", "frozenset", "cell", "function", "weakref.ReferenceType", "method",
     "builtin_function_or_method", "code", "generator", "coroutine", "collections.deque", "frame",
     "hamt", "hamt_bitmap_node", "hamt_array_node", "_contextvars.Context")
)  # fmt: skip

_WEAK_SAMPLE: Final = 8  # items; the newest may be dead, and wait for its removal
_callback_of: Final[Any] = vars(weakref.ref)["__callback__"].__get__  # not that of a subclass
_MIN_LARGE_GROWTH: Final = 1 << 20  # bytes; any program has some large texts more for a while
_MAX_LARGE: Final = 24  # as many as one referrer walk starts from


_NO_LARGE: Final[Mapping[int, tuple[int, int]]] = types.MappingProxyType({})


@record
class Census:
    """The containers and types that lived at one moment; numbers and names, no objects.

    Attributes:
        containers: (address of the type, length) of each container of at least 64 items (or of `minimum`), by address.
        types: the number of objects of each type, by the address of the type.
        names: the names of the types, by the address of the type.
        objects: how many objects were counted.
        at: when the census ended, in seconds of `time.monotonic()`.
        large: (address of the type, bytes) of each buffer, text or array of at least 64 KiB, by address.
    """

    containers: dict[int, tuple[int, int]]
    types: dict[int, int]
    names: dict[int, str]
    objects: int
    at: float
    large: Mapping[int, tuple[int, int]] = _NO_LARGE

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
        bytes_per_second: growth of the large objects of the type, of 64 KiB and more each; 0 for other growth.
        size_bytes: what the large objects take now; 0 for other growth.
        large: the addresses of large objects that are new or have grown, at most 24 of them, the largest first.
    """

    type_name: str
    before: int
    after: int
    per_second: float
    address: int = 0
    bytes_per_second: float = 0.0
    size_bytes: int = 0
    large: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.large:
            rate, size = format_size(self.bytes_per_second), format_size(self.size_bytes)
            return f"{self.type_name} +{rate}/s in large objects ({self.after:,} now, {size})"
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
        self._kinds: dict[int, type | None] = OwnDict()  # by address of a type: the built-in container that it is
        self._names: dict[int, str] = OwnDict()
        self._types: dict[int, int] = OwnDict()
        self._containers: dict[int, tuple[int, int]] = OwnDict()
        self._large = LargeObjects()
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

        # The garbage collector does not track a dict or tuple of plain values only: it is found as a referent of other
        # objects.
        referents = gc.get_referents(*skip_modules(objects))
        addresses = list(map(id, map(type, referents)))
        dicts = untracked_among(referents, addresses, dict)
        self._measure(dict, dicts)
        self._large.add(referents, addresses)
        inner = gc.get_referents(*dicts, *untracked_among(referents, addresses, tuple))
        self._large.add(inner, list(map(id, map(type, inner))))

    def _record_types(self, types: dict[int, type]) -> None:
        for address, cls in types.items():
            if address not in self._kinds:
                self._kinds[address] = container_kind(cls) if cls is not OwnDict else None
                self._names[address] = type_name(cls)

    def _measure(self, kind: type, containers: list[Any]) -> None:
        lengths = list(map(LENGTHS[kind], containers))
        for container, length in compress(zip(containers, lengths, strict=True), map(self._is_long, lengths)):
            cls = real_type(container)
            self._containers[id(container)] = (id(cls), length)
            self._names.setdefault(id(cls), type_name(cls))

    def build(self) -> Census:
        self._types.pop(id(OwnDict), None)
        large = self._large.found
        for kind in {kind for kind, _ in large.values()} - self._names.keys():
            self._names[kind] = type_name(self._large.type_at(kind))
        return Census(self._containers, self._types, self._names, self._objects, time.monotonic(), large)


def growth_between(*counts: Census, limit: int = 10, minimum: int = MIN_GROWTH) -> tuple[HeapGrowth, ...]:
    """Return what grew from each census to the next: containers, types, then large objects, each sorted by rate.

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
    grown = (_containers(counts, seconds, minimum), _types(counts, seconds, minimum), _large_objects(counts, seconds))
    return tuple(chain.from_iterable(found[:limit] for found in grown))


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


def _large_objects(counts: Sequence[Census], seconds: float) -> list[HeapGrowth]:
    found: list[HeapGrowth] = []
    for cls in {kind for kind, _ in counts[-1].large.values()}:
        numbers = [[size for kind, size in count.large.values() if kind == cls] for count in counts]
        sizes = list(map(sum, numbers))
        if sizes[-1] - sizes[0] < _MIN_LARGE_GROWTH or sizes != sorted(sizes):
            continue
        newest = _new_or_grown(counts[0].large, counts[-1].large, cls)
        rate = (len(numbers[-1]) - len(numbers[0])) / seconds
        found.append(
            HeapGrowth(
                counts[-1].names[cls], len(numbers[0]), len(numbers[-1]), rate,
                bytes_per_second=(sizes[-1] - sizes[0]) / seconds, size_bytes=sizes[-1], large=newest,
            )
        )  # fmt: skip
    return sorted(found, key=lambda growth: -growth.bytes_per_second)


def _new_or_grown(
    before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]], cls: int
) -> tuple[int, ...]:
    grown = (
        (size - before.get(address, (cls, 0))[1], address) for address, (kind, size) in after.items() if kind == cls
    )
    return tuple(address for growth, address in nlargest(_MAX_LARGE, grown) if growth >= LARGE_BYTES)


def _rate(growth: HeapGrowth) -> tuple[bool, float]:
    # Growth of what existed before says more than what is new.
    return (not growth.before, -growth.per_second)


def find_by_address(wanted: dict[int, HeapGrowth]) -> list[Any]:  # Any: foreign objects
    """Return the containers that are still at their addresses, of the same type."""
    found = _among(all_objects(), wanted)
    if len(found) < len(wanted):
        missing = find_untracked(wanted.keys() - set(map(id, found)))[0]
        found += [each for each in missing if real_type(each) is dict and wanted[id(each)].type_name == "dict"]
    return found


def _among(objects: list[Any], wanted: dict[int, HeapGrowth]) -> list[Any]:
    candidates = list(compress(objects, map(wanted.__contains__, map(id, objects))))
    return [found for found in candidates if type_name(real_type(found)) == wanted[id(found)].type_name]


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
    kind = container_kind(real_type(container))
    if kind is dict:
        parts: Iterator[Any] = chain.from_iterable(islice(newest_items(container), _WEAK_SAMPLE))
    elif kind is set:
        parts = islice(ITERATORS[set](container), _WEAK_SAMPLE)
    else:
        return False
    try:
        return any(map(_is_removed_at_death, parts))
    except RuntimeError:
        return False  # another thread changed the container


def _is_removed_at_death(part: Any) -> bool:
    # The weak containers of the standard library give each reference a callback that takes it out. A list or dict of
    # other weak references keeps each of them, dead ones included: it can leak.
    if not issubclass(real_type(part), weakref.ref):
        return False
    callback = _callback_of(part)  # None once the object is dead
    return (
        real_type(callback) is types.FunctionType
        and any(callback.__globals__ is instance_dict(sys.modules.get(name)) for name in ("weakref", "_weakrefset"))
        and callback.__code__.co_name in ("remove", "_remove")
    )


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
