"""What `values()` and `items()` return: views whose walk is over a snapshot, and keeps nothing alive.

Leaves to others: keys, for which the view of `collections.abc` will do (`_weak_cache`).

The views of `collections.abc` look every key up again, which fails when the value has died on the way, counts as a hit
and makes the entry young.
"""

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from typing import TypeVar

from memtools.structures.caches._entries import MISSING, Entry, Missing, value_of

K = TypeVar("K")
V = TypeVar("V")


class CacheValues(ValuesView[V]):
    """The values of a cache."""

    __slots__ = ("_snapshot",)

    def __init__(self, cache: Mapping[K, V], snapshot: Callable[[], list[Entry[K, V]]]) -> None:
        super().__init__(cache)
        self._snapshot = snapshot

    def __contains__(self, value: object) -> bool:
        return any(other is value or other == value for other in self)

    def __iter__(self) -> Iterator[V]:
        for entry in self._snapshot():
            value = value_of(entry)
            if value is not MISSING:
                yield value
            del value  # or it would live until the next step


class CacheItems(ItemsView[K, V]):
    """The keys of a cache with their values."""

    __slots__ = ("_peek", "_snapshot")

    def __init__(
        self, cache: Mapping[K, V], snapshot: Callable[[], list[Entry[K, V]]], peek: Callable[[K], V | Missing]
    ) -> None:
        super().__init__(cache)
        self._snapshot = snapshot
        self._peek = peek

    def __contains__(self, item: tuple[object, object]) -> bool:  # type: ignore[override]  # as typeshed's own view
        key, value = item
        found = self._peek(key)  # type: ignore[arg-type]  # any object may be asked for
        return found is not MISSING and (found is value or found == value)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for entry in self._snapshot():
            value = value_of(entry)
            if value is not MISSING:
                yield entry.key, value
            del value
