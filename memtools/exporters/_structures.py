"""What bounded lists, caches and other registered things hold, and what had to go from them, by type.

Covers: counters that do not fall when a structure dies. Leaves to others: who is registered (`memtools.cleanup`).

Only our own structures are asked for figures: what a stranger's `statistics()` costs, or waits for, is unknown.
"""

from collections import Counter
from typing import TypeAlias
from weakref import ref

from memtools.cleanup import Shrinkable, registered
from memtools.exporters._names import Names
from memtools.records import record
from memtools.structures import BoundedList, WeakCache

_Seen: TypeAlias = tuple[ref[Shrinkable], str, int]  # the thing, its label, its evictions when it was looked at last


@record
class StructureFigures:
    """What is alive of one type.

    Attributes:
        alive: how many things, by type.
        items: what they hold, by type; only for our own types.
        evictions: what had to go from them, those included that have died since they were last looked at.
    """

    alive: dict[str, int]
    items: dict[str, int]
    evictions: dict[str, int]


class Structures:
    """Looks at the registered things; the caller sees to threads.

    What a structure evicts between the last look and its death is not counted.
    """

    __slots__ = ("_names", "_past", "_seen")

    def __init__(self, names: Names) -> None:
        self._names = names
        self._past: Counter[str] = Counter()
        self._seen: dict[int, _Seen] = {}

    def look(self) -> StructureFigures:
        """Return the figures of this moment."""
        alive: Counter[str] = Counter()
        items: Counter[str] = Counter()
        evictions: Counter[str] = Counter()
        seen: dict[int, _Seen] = {}

        for thing in registered():
            label = self._names.label(_type_name(type(thing)))
            alive[label] += 1
            figures = _figures(thing)
            if figures is None:
                continue
            items[label] += figures[0]
            evictions[label] += figures[1]
            seen[id(thing)] = (self._reference(thing), label, figures[1])

        for number, (reference, label, gone) in self._seen.items():
            if number not in seen or seen[number][0] is not reference:
                self._past[label] += gone
        self._seen = seen
        evictions.update(self._past)
        return StructureFigures(dict(alive), dict(items), dict(evictions))

    def _reference(self, thing: Shrinkable) -> "ref[Shrinkable]":
        # An id is given to another thing after death; a reference that still leads to the thing is the thing's own.
        known = self._seen.get(id(thing))
        return known[0] if known is not None and known[0]() is thing else ref(thing)


def _figures(thing: Shrinkable) -> tuple[int, int] | None:
    if isinstance(thing, BoundedList):
        bounded = thing.statistics()
        return bounded.length, bounded.evicted
    if isinstance(thing, WeakCache):
        cache = thing.statistics()
        return cache.strong, cache.evictions
    return None


def _type_name(kind: type[Shrinkable]) -> str:
    # The list bounded by bytes is of a class of its own, of which nobody need know.
    for ours in (BoundedList, WeakCache):
        if issubclass(kind, ours) and kind.__module__.startswith("memtools."):
            return ours.__name__
    return kind.__qualname__
