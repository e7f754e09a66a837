"""Lists with `max_bytes`: the size of each item is remembered.

The sizes are kept in a list of their own, which every mutator changes in the same way as the items. This is a class
apart so that a list without `max_bytes` keeps the C methods for everything that removes or reorders items.
"""

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex, TypeVar, overload

from memtools.structures._eviction import measure, wrong_size
from memtools.structures._window import BoundedListBase, ListBounds

T = TypeVar("T")


class ByteBoundedMixin(BoundedListBase[T]):
    """The methods of a list whose items have at most `max_bytes` together, by their remembered sizes."""

    __slots__ = ()

    def _set_bounds(self, bounds: ListBounds) -> None:
        super()._set_bounds(bounds)
        self._sizes = []
        self._size_bytes = 0
        self._max_bytes = bounds.max_bytes or 0

    def append(self, item: T, /) -> None:
        """Add `item` at the end; when the list is full, by number or by bytes, the oldest items are evicted."""
        size = self._size_of(item)
        self._sync_sizes()
        self._list_append(item)
        self._sizes.append(size)
        self._size_bytes += size
        if self._size_bytes > self._max_bytes or len(self) > self._limit:
            self._enforce_bounds()

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add all items of `iterable` at the end; those of an iterator one by one, so that few exist at once."""
        # The list may exceed its bounds (`list.append(x, item)`), and would then be trimmed while it is read.
        self._extend_from_iterator(iter(self[:] if iterable is self else iterable))

    def insert(self, index: SupportsIndex, item: T, /) -> None:
        """Put `item` before `index`; when the list is full, the oldest are evicted: at the front, `item` itself."""
        self._sync_sizes()
        size = self._size_of(item)
        self._list_insert(index, item)
        self._sizes.insert(index, size)
        self._size_bytes += size
        self._enforce_bounds()

    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any, /) -> None:  # Any: as wide as both forms
        self._sync_sizes()
        # The replaced items live until the sizes are in step, because a finaliser may add to this very list.
        if isinstance(index, slice):
            items: list[T] = list(value)
            sizes = list(map(self._size_of, items))
            _replaced = self[index]
            self._list_setitem(index, items)
            self._size_bytes += sum(sizes) - sum(self._sizes[index])
            self._sizes[index] = sizes
        else:
            size = self._size_of(value)
            _replaced = [self[index]]
            self._list_setitem(index, value)
            self._size_bytes += size - self._sizes[index]
            self._sizes[index] = size
        self._enforce_bounds()

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        self._sync_sizes()
        _removed = self[index]  # lives until the sizes are in step
        self._list_delitem(index)
        sizes = self._sizes[index]
        self._size_bytes -= sum(sizes) if isinstance(sizes, list) else sizes
        del self._sizes[index]

    def pop(self, index: SupportsIndex = -1, /) -> T:
        """Remove the item at `index` and return it."""
        self._sync_sizes()
        item: T = self._list_pop(index)
        self._size_bytes -= self._sizes.pop(index)
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
        self._sync_sizes()
        before = self[:]  # keeps the items alive, so that no id is used again
        size_of = dict(zip(map(id, before), self._sizes, strict=True))
        try:
            super().sort(key=key, reverse=reverse)
        finally:
            self._sizes = [size_of[id(item)] for item in self]
            self._size_bytes = sum(self._sizes)  # an object that is in two places may have two sizes
            self._enforce_bounds()

    def _size_of(self, item: T) -> int:
        size = measure(self._bounds.sizeof, item)
        if size < 0:
            raise wrong_size(self._bounds.sizeof, size)
        return size

    def _extend_unchecked(self, other: BoundedListBase[T]) -> None:
        self._extend_sized(other[:], other._sizes[:])  # the remembered sizes: an item may have grown since

    def _extend_sized(self, items: list[T], sizes: list[int]) -> None:
        self._sync_sizes()
        self._list_extend(items)
        self._sizes += sizes
        self._size_bytes += sum(sizes)

    def _sync_sizes(self) -> None:
        # `list.append(x, item)`, `heapq.heappush` and the like bypass these methods.
        if len(self._sizes) != len(self):
            self._recompute()

    def _recompute(self) -> None:
        self._sizes = list(map(self._size_of, self))
        self._size_bytes = sum(self._sizes)

    def _repeat(self, times: int) -> None:
        self._sync_sizes()
        enough = min(times, self._max_bytes // self._size_bytes + 1) if self._size_bytes else times
        _removed = self[:] if enough <= 0 else None  # lives until the sizes are in step
        self._imul(enough)
        self._sizes *= enough
        self._size_bytes = sum(self._sizes)
        self._enforce_bounds()

    def _extend_from_iterator(self, iterator: Iterator[T]) -> None:
        waiting: list[T] = []
        sizes: list[int] = []
        waiting_bytes = 0
        overflowed = False

        try:
            for item in iterator:
                size = self._size_of(item)
                waiting.append(item)
                sizes.append(size)
                waiting_bytes += size
                if waiting_bytes > self._max_bytes or len(waiting) > self._limit:
                    self._extend_sized(waiting, sizes)
                    waiting, sizes, waiting_bytes = [], [], 0
                    overflowed = self._trim_to(self._limit) or overflowed
                    self._enforce_bounds()
        finally:
            self._extend_sized(waiting, sizes)
            if overflowed:
                self._trim_to(self._keep)
            self._enforce_bounds()

    def _enforce_bounds(self) -> None:
        """Enforce the bound on the number of items, then the bound in bytes."""
        excess_bytes = self._size_bytes - self._max_bytes
        count = len(self) - self._keep if len(self) > self._limit else 0
        if count == 0 and excess_bytes <= 0:
            return

        excess_bytes -= sum(self._sizes[:count])
        while excess_bytes > 0 and count < len(self._sizes):
            excess_bytes -= self._sizes[count]
            count += 1
        self._trim_to(len(self) - count)

    def _add(self, items: list[T], limit: int, keep: int, /) -> list[T]:
        self._extend_sized(items, list(map(self._size_of, items)))
        count = len(self) - keep if len(self) > limit else 0
        evicted = self[:count]  # lives until the sizes are in step
        self._size_bytes -= sum(self._sizes[:count])
        del self._sizes[:count]
        self._list_delitem(slice(None, count))
        self._evicted += count
        return evicted
