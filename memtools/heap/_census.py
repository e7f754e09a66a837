"""Count what lives: which containers are how long, and how many objects of each type there are.

Covers: one walk over what the garbage collector knows, in slices, so that no stop is long; what grew between two
counts.
Leaves to others: who keeps it (`_climbing`), how it is told (`_answers`).

A count holds numbers only, never an object: containers are known by their address and are found again by it. An
address may be used again; type and length are then compared as well.

Cost: about 0.3 s for 750,000 objects in stops of at most some 50 ms (docs/performance.md, heap).
"""

import gc
import time
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from operator import not_
from typing import Any, Final

from memtools.heap._looking import LENGTHS, all_objects, class_of, kind_of, type_name, without_modules
from memtools.records import record
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
class Growing:
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


def census(*, least: int = LEAST_LENGTH) -> Census:
    """Count all containers and types in one go.

    Args:
        least: the length from which on a container is counted.

    Raises:
        ConfigError: for anything but a whole number of at least 1.
    """
    steps = count_in_slices(least=least)
    while (counted := next(steps)) is None:
        pass
    return counted


def count_in_slices(*, least: int = LEAST_LENGTH) -> Iterator[Census | None]:
    """Count, yielding None between the slices and the census at the end.

    Args:
        least: the length from which on a container is counted.

    Raises:
        ConfigError: for anything but a whole number of at least 1, at the first step.
    """
    count = _Count(parse_count(least, name="least"))
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
