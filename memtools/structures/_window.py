"""A list that never ends a call with more than `maxlen` items: what stands on the calls that add.

Covers: taking the bounds, feeding from iterators in bounded portions, repeating, telling and counting what went.
Leaves to others: the calls that add (`_seat`: in C or in Python), arguments, copies and statistics (`_bounded_list`),
bytes (`_weighed`), the hook (`_eviction`).

Whatever only reads or removes is the list's own C method and is not touched.
"""

import operator
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, SupportsIndex, TypeVar

from memtools.structures._eviction import Eviction
from memtools.structures._list_bounds import ListBounds
from memtools.structures._pure_window import PureWindow
from memtools.structures._seat import pick_seat
from memtools.structures._strokes import Strokes

if TYPE_CHECKING:
    Seat = PureWindow
else:
    Seat = pick_seat()

T = TypeVar("T")

_PORTION = 1024  # items; below it the price of a portion is lost in the price of its items


class Window(Seat[T]):
    """A list within bounds, except for the bound in bytes."""

    # The class of a list bounded by bytes has further methods but must have the very same layout: see `weighed`.
    __slots__ = (
        "__weakref__",
        "_bounds",
        "_bytes",
        "_eviction",
        "_most",
        "_sizes",
        "_stale",
        "_strokes",
    )

    _bounds: ListBounds
    _stale: slice
    _eviction: Eviction | None
    _strokes: Strokes | None  # what is left of a `shrink` that ran out of time
    # Of a list bounded by bytes; see `_weighed`.
    _sizes: list[int]
    _bytes: int
    _most: int

    # A class attribute is one look-up where `super()` is a call: 12.5 against 16 times `deque.append`.
    _app: ClassVar[Callable[..., None]] = list[Any].append
    _ext: ClassVar[Callable[..., None]] = list[Any].extend
    _ins: ClassVar[Callable[..., None]] = list[Any].insert
    _pop: ClassVar[Callable[..., Any]] = list[Any].pop
    _set: ClassVar[Callable[..., None]] = list[Any].__setitem__
    _cut: ClassVar[Callable[..., None]] = list[Any].__delitem__
    _rep: ClassVar[Callable[..., Any]] = list[Any].__imul__

    def _bind(self, bounds: ListBounds) -> None:
        """Take `bounds`; the items are not looked at."""
        self._bounds = bounds
        self._strokes = None
        self._limit = sys.maxsize if bounds.maxlen is None else bounds.maxlen
        self._keep = self._limit if bounds.keep is None else bounds.keep
        self._is_exact = self._keep == self._limit > 0 and bounds.on_evict is None
        # Counted from the end, a cut that two threads make at once takes no more than one of them would.
        self._stale = slice(None, -self._keep or None)
        self._is_told = bounds.on_evict is not None
        self._portion = max(_PORTION, self._limit // 8, self._limit - self._keep)
        self._evicted = 0
        self._eviction = None if bounds.on_evict is None else Eviction(bounds.on_evict)

    def __imul__(self, times: SupportsIndex, /) -> Self:
        try:
            wanted = operator.index(times)
        except TypeError:
            return NotImplemented

        # Copies that could not stay are not made: `x *= 10**9` is as cheap as one that overflows by little.
        enough = self._limit // len(self) + 1 if self else 0
        self._repeat(min(wanted, enough))
        return self

    def _repeat(self, times: int) -> None:
        self._rep(times)
        self._fit()

    def _feed(self, feed: Iterator[T]) -> None:
        # As long as `feed` may be looking at this list (`x.extend(x)`, `reversed(x)`), the items wait outside: cutting
        # the list would move its items under the iterator. One that gives more than the list holds looks elsewhere.
        patience = len(self)
        waiting: list[T] = []
        overflowed = False

        try:
            while True:
                before = len(waiting)
                waiting.extend(islice(feed, self._portion))
                if len(waiting) - before < self._portion:
                    return
                if len(waiting) > patience:
                    self._ext(waiting)
                    waiting.clear()
                    patience = 0
                    overflowed = self._cut_to(self._limit) or overflowed
        finally:
            self._ext(waiting)
            if overflowed or len(self) > self._limit:
                self._cut_to(self._keep)

    def _adopt(self, other: "Window[T]") -> None:
        """Take the items of a list with the same bounds."""
        self._ext(other[:])

    def _reweigh(self) -> None:
        """Nothing is weighed here."""

    def _fit(self) -> None:
        """Cut an overflow."""
        if len(self) > self._limit:
            self._drop(self._stale, len(self) - self._keep)

    def _cut_to(self, length: int) -> bool:
        """Have the oldest go until `length` are left; return whether any went."""
        excess = len(self) - length
        if excess <= 0:
            return False
        self._drop(slice(None, -length or None), excess)
        return True

    def _drop(self, stale: slice, count: int) -> None:
        """Remove the `stale` items, `count` of them, and tell of them."""
        self._evicted += count
        if self._eviction is None:
            self._cut(stale)
            return

        gone = self[stale]
        self._cut(stale)
        self._eviction.tell(gone)


# What is ours beside the items, and no part of what a subclass has added. The C type's fields are no slots.
OWN_SLOTS: Final = frozenset((*Window.__slots__, *PureWindow.__slots__))
