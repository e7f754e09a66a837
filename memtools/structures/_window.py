"""A list that never ends a call with more than `maxlen` items: the mutators that can add.

Covers: cutting the oldest after each of them, feeding from iterators in bounded portions, counting what went.
Leaves to others: arguments, copies and statistics (`_bounded_list`), bytes (`_weighed`), the hook (`_eviction`).

Whatever only reads or removes is the list's own C method and is not touched. This is the file that a C type may stand
in for.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar, Self, SupportsIndex, TypeVar, overload

from memtools.structures._eviction import Eviction
from memtools.structures._list_bounds import ListBounds

T = TypeVar("T")

_PORTION = 1024  # items; below it the price of a portion is lost in the price of its items


class Window(list[T]):
    """A list of at most `_limit` items; an overflow leaves the last `_keep` of them."""

    # The class of a list bounded by bytes has further methods but must have the very same layout: see `weighed`.
    __slots__ = (
        "__weakref__",
        "_bounds",
        "_bytes",
        "_evicted",
        "_eviction",
        "_is_exact",
        "_keep",
        "_limit",
        "_most",
        "_portion",
        "_sizes",
        "_stale",
    )

    _bounds: ListBounds
    _limit: int
    _keep: int
    _is_exact: bool
    _stale: slice
    _portion: int
    _evicted: int
    _eviction: Eviction | None
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
        self._limit = sys.maxsize if bounds.maxlen is None else bounds.maxlen
        self._keep = self._limit if bounds.keep is None else bounds.keep
        self._is_exact = self._keep == self._limit > 0 and bounds.on_evict is None
        # Counted from the end, a cut that two threads make at once takes no more than one of them would.
        self._stale = slice(None, -self._keep or None)
        self._portion = max(_PORTION, self._limit // 8, self._limit - self._keep)
        self._evicted = 0
        self._eviction = None if bounds.on_evict is None else Eviction(bounds.on_evict)

    def append(self, item: T, /) -> None:
        """Add `item` at the end; where the list is full, the oldest go."""
        self._app(item)
        if len(self) > self._limit:
            if self._is_exact:
                try:
                    self._pop(0)
                except IndexError:  # another thread has just emptied the list
                    return
                self._evicted += 1
            else:
                self._fit()

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add all of `iterable` at the end; where that is too much, the last `keep` are left.

        An iterator is fed in portions: there are never more of its items than the bound and one portion (1,024 items
        or an eighth of `maxlen`), however many it gives. If it fails, what it gave before stays, as in a list.
        """
        kind = type(iterable)
        if (kind is list or kind is tuple) and len(iterable) <= self._portion:  # type: ignore[arg-type]
            self._ext(iterable)
            if len(self) > self._limit:
                if self._eviction is None:
                    self._evicted += len(self) - self._keep
                    self._cut(self._stale)
                else:
                    self._fit()
        else:
            self._feed(iter(iterable))

    def insert(self, index: SupportsIndex, item: T, /) -> None:
        """Put `item` before `index`; where the list is full, the oldest go: at the front, `item` itself."""
        self._ins(index, item)
        if len(self) > self._limit:
            self._fit()

    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __setitem__(self, index: Any, value: Any, /) -> None:  # as wide as both forms
        self._set(index, value)
        if len(self) > self._limit:
            self._fit()

    # Narrower than `__add__` by the language's own rules; typeshed silences this for `list`, too.
    def __iadd__(self, iterable: Iterable[T], /) -> Self:  # type: ignore[override, misc]
        self.extend(iterable)
        return self

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
