"""Count what lives: which containers are how long, and how many objects of each type there are.

Covers: one walk over what the garbage collector knows, in slices, so that no stop is long; what grew between two
counts.
Leaves to others: who keeps it (`_climbing`), how it is told (`_answers`).

A count holds numbers only, never an object: containers are known by their address and are found again by it. An
address may be used again; type and length are then compared as well.

Cost: about 0.3 s for 750,000 objects in stops of at most some 50 ms (docs/performance.md, heap).
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
    REVERSED,
    all_objects,
    class_of,
    kind_of,
    newest_items,
    type_name,
    without_modules,
)
from memtools.units import parse_count

# Shorter ones are seldom a leak yet, and most of the heap.
LEAST_LENGTH: Final = 64
# Objects looked at in one go: with their referents some 10 ms.
_SLICE: Final = 25_000

_IS_DICT: Final = id(dict).__eq__


class _Own(dict[int, Any]):  # Any: numbers and names
    """A dict of this room's, so that no count finds the others growing."""

    __slots__ = ()


@record
class Census:
    """What lived at one moment; numbers and names, no objects.

    Attributes:
        containers: for each container of at least 64 items (or the length that was asked for): its address, and
            (address of its type, length).
        types: how many objects of each type, by the address of the type.
        names: the names of the types, by the address of the type.
        objects: how many objects were looked at.
        at: when, in seconds of `time.monotonic()`.
    """

    containers: dict[int, tuple[int, int]]
    types: dict[int, int]
    names: dict[int, str]
    objects: int
    at: float

    def __str__(self) -> str:
        largest = sorted(self.types.items(), key=lambda item: -item[1])[:10]
        lines = [f"{self.objects:,} objects, {len(self.containers):,} containers of {LEAST_LENGTH} items or more"]
        lines += [f"{count:>12,}  {self.names[kind]}" for kind, count in largest]
        return "\n".join(lines)


@record
class HeapGrowth:
    """A container, or a type, that has more than before.

    Attributes:
        type_name: what it is.
        before: its items, or the objects of the type, at the first census.
        after: the same at the second one.
        per_second: how fast it grew.
        address: where the container is, 0 for a type.
    """

    type_name: str
    before: int
    after: int
    per_second: float
    address: int = 0

    def __str__(self) -> str:
        what = "items" if self.address else "objects"
        return f"{self.type_name} +{self.per_second:,.3g} {what}/s ({self.after:,} now)"


def heap_census(*, minimum: int = LEAST_LENGTH) -> Census:
    """Count all containers and types in one go.

    Args:
        least: the length from which on a container is counted.

    Raises:
        ConfigError: for anything but a whole number of at least 1.
    """
    steps = count_in_slices(minimum=minimum)
    while (counted := next(steps)) is None:
        pass
    return counted


def count_in_slices(*, minimum: int = LEAST_LENGTH) -> Iterator[Census | None]:
    """Count, yielding None between the slices and the census at the end.

    Args:
        least: the length from which on a container is counted.

    Raises:
        ConfigError: for anything but a whole number of at least 1, at the first step.
    """
    count = _Count(parse_count(minimum, name="least"))
    objects = all_objects()
    while objects:
        count.add(objects[-_SLICE:])
        del objects[-_SLICE:]  # what died meanwhile dies here, a slice at a time
        yield None
    yield count.result()


class _Count:
    """What was counted so far. All loops over objects are loops in C that call nothing of theirs."""

    def __init__(self, least: int) -> None:
        self._is_long = least.__le__
        self._kinds: dict[int, type | None] = _Own()  # of types: the container that they are
        self._names: dict[int, str] = _Own()
        self._types: dict[int, int] = _Own()
        self._containers: dict[int, tuple[int, int]] = _Own()
        self._objects = 0

    def add(self, objects: list[Any]) -> None:  # Any: strangers
        types = list(map(type, objects))
        addresses = list(map(id, types))
        self._objects += len(objects)
        for address, number in Counter(addresses).items():
            self._types[address] = self._types.get(address, 0) + number
        self._learn(dict(zip(addresses, types, strict=True)))
        for kind in LENGTHS:
            wanted = {address for address, found in self._kinds.items() if found is kind}
            self._weigh(kind, list(compress(objects, map(wanted.__contains__, addresses))))

        # A dict of plain values only is not tracked: it is found through who refers to it.
        referents = gc.get_referents(*without_modules(objects))
        dicts = list(compress(referents, map(_IS_DICT, map(id, map(type, referents)))))
        self._weigh(dict, list(compress(dicts, map(not_, map(gc.is_tracked, dicts)))))

    def _learn(self, types: dict[int, type]) -> None:
        for address, cls in types.items():
            if address not in self._kinds:
                self._kinds[address] = kind_of(cls) if cls is not _Own else None
                self._names[address] = type_name(cls)

    def _weigh(self, kind: type, containers: list[Any]) -> None:
        lengths = list(map(LENGTHS[kind], containers))
        for one, length in compress(zip(containers, lengths, strict=True), map(self._is_long, lengths)):
            self._containers[id(one)] = (id(class_of(one)), length)
            self._names.setdefault(id(class_of(one)), type_name(class_of(one)))

    def result(self) -> Census:
        self._types.pop(id(_Own), None)
        return Census(self._containers, self._types, self._names, self._objects, time.monotonic())


# What grew between two counts of the heap.
#
# Covers: containers first, by the rate of their growth; types of objects where no container explains them. Pure: numbers
# in, numbers out.
# Leaves to others: counting (`_census`), who keeps it (`_answers`).

# What grows along with any container or instance, and tells nothing by itself.
_EVERYDAY: Final = frozenset(
    ("dict", "list", "tuple", "set", "frozenset", "cell", "function", "weakref.ReferenceType", "method",
     "builtin_function_or_method", "code", "generator", "coroutine", "collections.deque", "frame")
)  # fmt: skip
LEAST_GROWTH: Final = 16


def growth_between(*counts: Census, limit: int = 10, minimum: int = LEAST_GROWTH) -> tuple[HeapGrowth, ...]:
    """Return what grew from each count to the next, the fastest containers first, then the fastest types.

    What was not there at the first count comes after what was.

    A container that became shorter in between is at work, and no leak.

    Args:
        counts: two or more, in the order in which they were taken; 10 to 30 s apart for a service.
        most: how many containers and how many types to return at most.
        least: how much more there must be; fewer than 16 is what any program does meanwhile.

    Raises:
        ConfigError: for fewer than two counts.
    """
    if len(counts) < 2:
        raise ConfigError("counts", len(counts), "two or more counts, as `census()` returns them")
    seconds = max(counts[-1].at - counts[0].at, 1e-9)
    return (*_containers(counts, seconds, minimum)[:limit], *_types(counts, seconds, minimum)[:limit])


def _containers(counts: Sequence[Census], seconds: float, least: int) -> list[HeapGrowth]:
    found: list[HeapGrowth] = []
    for address, (cls, after) in counts[-1].containers.items():
        lengths = _lengths(counts, address, cls)
        if lengths is None or after - lengths[0] < least or lengths != sorted(lengths):
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


def _types(counts: Sequence[Census], seconds: float, least: int) -> list[HeapGrowth]:
    found: list[HeapGrowth] = []
    for cls, after in counts[-1].types.items():
        name = counts[-1].names[cls]
        if name in _EVERYDAY or name.startswith("memtools.heap."):
            continue
        numbers = [count.types.get(cls, 0) for count in counts]
        if after - numbers[0] >= least and numbers == sorted(numbers):
            found.append(HeapGrowth(name, numbers[0], after, (after - numbers[0]) / seconds))
    return sorted(found, key=_rate)


def _rate(one: HeapGrowth) -> tuple[bool, float]:
    # What was there before and grew says more than what has come since.
    return (not one.before, -one.per_second)


# Find again what was counted, and pick objects to climb from.
#
# Covers: the container at an address, the newest objects of a type, and which of them are nobody's leak.
# Leaves to others: climbing (`_climbing`).

_NEWEST_SLICE: Final = 50_000


def at_addresses(wanted: dict[int, HeapGrowth]) -> list[Any]:  # Any: strangers
    """Return the containers that are still at their addresses, of the same type."""
    found = _among(all_objects(), wanted)
    if len(found) < len(wanted):
        found += _among_untracked(wanted.keys() - {id(one) for one in found}, wanted)
    return found


def _among(objects: list[Any], wanted: dict[int, HeapGrowth]) -> list[Any]:
    candidates = list(compress(objects, map(wanted.__contains__, map(id, objects))))
    return [one for one in candidates if type_name(class_of(one)) == wanted[id(one)].type_name]


def _among_untracked(missing: set[int], wanted: dict[int, HeapGrowth]) -> list[Any]:
    found: dict[int, Any] = {}
    objects = all_objects()
    while objects and len(found) < len(missing):
        referents = gc.get_referents(*without_modules(objects[-_NEWEST_SLICE:]))
        del objects[-_NEWEST_SLICE:]
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


# The longest containers there are, and who holds each: what holds the most, whether it grows or not.
#
# Leaves to others: counting (`_census`), climbing and naming (`_answers`), what each weighs.


def largest_containers(limit: int = 5, *, least: int = 1000) -> list[Any]:  # Any: strangers
    """Return the longest containers, the longest first; the caller holds them, and should let go of them soon.

    The insides of weak sets and mappings are left out, and so are tables of the interpreter.

    Args:
        most: how many.
        least: the length from which on a container counts.

    Raises:
        ConfigError: if `least` is no whole number of at least 1.
    """
    counted = heap_census(minimum=least)
    # More than asked for: some are left out below.
    longer = sorted(counted.containers.items(), key=lambda one: one[1][1], reverse=True)[: 2 * limit + 8]
    wanted = {address: HeapGrowth(counted.names[cls], 0, length, 0.0, address) for address, (cls, length) in longer}
    found = {id(thing): thing for thing in at_addresses(wanted) if not _is_nobodys(thing)}
    return [found[address] for address in wanted if address in found][:limit]


def _is_nobodys(thing: object) -> bool:
    return thing is sys.modules or thing is linecache.cache or is_weak_inside(thing)
