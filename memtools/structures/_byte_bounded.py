"""A list that is bounded by bytes as well: each item's shallow size is taken once and remembered.

Covers: the sizes, kept in the order of the items through every mutator.
Leaves to others: the bound on the number of items (`_window`), who gets this class (`_bounded_list`).

The sizes stand in a list of their own, one place per item, and each mutator does to it what it did to the items. It is
a class apart so that a list without `max_bytes` keeps the C methods for all that removes and reorders.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex, TypeVar, cast, overload

from memtools.errors import ConfigError
from memtools.structures._window import ListBounds, Window

T = TypeVar("T")
W = TypeVar("W", bound=Window[Any])


class Weighed(Window[T]):
    """A window whose items together have at most `max_bytes`, by remembered size."""

    __slots__ = ()

    def _bind(self, bounds: ListBounds) -> None:
        super()._bind(bounds)
        self._sizes = []
        self._bytes = 0
        self._most = bounds.max_bytes or 0

    def append(self, item: T, /) -> None:
        """Add `item` at the end; where the list is full, by number or by bytes, the oldest go."""
        size = self._weigh(item)
        self._align()
        self._app(item)
        self._sizes.append(size)
        self._bytes += size
        if self._bytes > self._most or len(self) > self._limit:
            self._fit()

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add all of `iterable` at the end; of an iterator, never more than the bounds hold and one item wait."""
        # A list that was filled behind our back weighs more than may wait: it would be cut while it is read.
        self._feed(iter(self[:] if iterable is self else iterable))

    def insert(self, index: SupportsIndex, item: T, /) -> None:
        """Put `item` before `index`; where the list is full, the oldest go: at the front, `item` itself."""
        self._align()
        size = self._weigh(item)
        self._ins(index, item)
        self._sizes.insert(index, size)
        self._bytes += size
        self._fit()

    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any, /) -> None:  # as wide as both forms
        self._align()
        # What is replaced lives until the sizes are in step: a finaliser of it may add to this very list.
        if isinstance(index, slice):
            items: list[T] = list(value)
            sizes = list(map(self._weigh, items))
            _replaced = self[index]
            self._set(index, items)
            self._bytes += sum(sizes) - sum(self._sizes[index])
            self._sizes[index] = sizes
        else:
            size = self._weigh(value)
            _replaced = [self[index]]
            self._set(index, value)
            self._bytes += size - self._sizes[index]
            self._sizes[index] = size
        self._fit()

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        self._align()
        _removed = self[index]  # lives until the sizes are in step
        self._cut(index)
        sizes = self._sizes[index]
        self._bytes -= sum(sizes) if isinstance(sizes, list) else sizes
        del self._sizes[index]

    def pop(self, index: SupportsIndex = -1, /) -> T:
        """Remove the item at `index` and return it."""
        self._align()
        item: T = self._pop(index)
        self._bytes -= self._sizes.pop(index)
        return item

    def remove(self, item: T, /) -> None:
        """Remove the first item that is equal to `item`."""
        del self[self.index(item)]

    def clear(self) -> None:
        """Remove all items."""
        del self[:]

    def reverse(self) -> None:
        """Reverse the order of the items in place."""
        super().reverse()
        self._sizes.reverse()

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sort the items in place, as a list does."""
        self._align()
        before = self[:]  # keeps the items alive, so that no id changes hands
        size_of = dict(zip(map(id, before), self._sizes, strict=True))
        try:
            super().sort(key=key, reverse=reverse)
        finally:
            self._sizes = [size_of[id(item)] for item in self]
            self._bytes = sum(self._sizes)  # one object in two places may have been weighed twice
            self._fit()

    def _weigh(self, item: T) -> int:
        size = cast("object", self._bounds.sizeof(item))  # the user's function may give what it never promised
        if isinstance(size, int) and size >= 0:
            return size
        raise ConfigError("sizeof", self._bounds.sizeof, f"a function that returns bytes, not {size!r}")

    def _adopt(self, other: Window[T]) -> None:
        self._take(other[:], other._sizes[:])  # an item may have grown: it is not asked again

    def _take(self, items: list[T], sizes: list[int]) -> None:
        self._align()
        self._ext(items)
        self._sizes += sizes
        self._bytes += sum(sizes)

    def _align(self) -> None:
        # `list.append(x, item)`, `heapq` and the like add behind our back: then all are weighed anew.
        if len(self._sizes) != len(self):
            self._reweigh()

    def _reweigh(self) -> None:
        self._sizes = list(map(self._weigh, self))
        self._bytes = sum(self._sizes)

    def _repeat(self, times: int) -> None:
        self._align()
        enough = min(times, self._most // self._bytes + 1) if self._bytes else times
        _before = self[:] if enough <= 0 else None  # lives until the sizes are in step
        self._rep(enough)
        self._sizes *= enough
        self._bytes = sum(self._sizes)
        self._fit()

    def _feed(self, feed: Iterator[T]) -> None:
        waiting: list[T] = []
        sizes: list[int] = []
        waiting_bytes = 0
        overflowed = False

        try:
            for item in feed:
                size = self._weigh(item)
                waiting.append(item)
                sizes.append(size)
                waiting_bytes += size
                if waiting_bytes > self._most or len(waiting) > self._limit:
                    self._take(waiting, sizes)
                    waiting, sizes, waiting_bytes = [], [], 0
                    overflowed = self._cut_to(self._limit) or overflowed
                    self._fit()
        finally:
            self._take(waiting, sizes)
            if overflowed:
                self._cut_to(self._keep)
            self._fit()

    def _fit(self) -> None:
        """Cut an overflow by number, then by bytes."""
        excess = self._bytes - self._most
        over = len(self) - self._keep if len(self) > self._limit else 0
        if over == 0 and excess <= 0:
            return

        excess -= sum(self._sizes[:over])
        while excess > 0 and over < len(self._sizes):
            excess -= self._sizes[over]
            over += 1
        self._drop(slice(None, over), over)

    def _drop(self, stale: slice, count: int) -> None:
        gone = self[stale]  # lives until the sizes are in step
        self._bytes -= sum(self._sizes[stale])
        del self._sizes[stale]
        self._cut(stale)
        self._evicted += count
        if self._eviction is not None:
            self._eviction.tell(gone)


def weighed(kind: type[W]) -> type[W]:
    """Return the class whose instances are `kind`s bounded by bytes; the same one each time.

    It stands as if `kind` had been derived from `Weighed`, so that overrides in `kind` still come first and reach it
    by `super()`.
    """
    found = kind.__dict__.get("_weighed_kind")
    if found is None:
        names = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "_plain_kind": kind}
        metaclass = cast("Callable[..., Any]", type(kind))
        found = metaclass(kind.__name__, (kind, Weighed), names)
        kind._weighed_kind = found  # type: ignore[attr-defined]  # a note of ours on a class that may be the user's
    return cast("type[W]", found)
