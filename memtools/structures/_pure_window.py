"""The calls that add to a list of at most so many items: `append`, `extend`, `insert`, `x[i:j] = y`, `x += y`.

Covers: cutting the oldest after each of them. The type in `_fast_window.c` does the same in C; both pass one suite.
Leaves to others: which of the two it is (`_seat`), and everything else (`_window`), whose methods it calls by name.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self, SupportsIndex, TypeVar, overload

T = TypeVar("T")


class PureWindow(list[T]):
    """A list of at most `_limit` items; an overflow leaves the last `_keep` of them."""

    __slots__ = ("_evicted", "_is_exact", "_is_told", "_keep", "_limit", "_portion")

    _limit: int
    _keep: int
    _portion: int
    _evicted: int
    _is_exact: bool
    _is_told: bool

    if TYPE_CHECKING:  # what the class above it gives
        _stale: slice
        _app: ClassVar[Callable[..., None]]
        _ext: ClassVar[Callable[..., None]]
        _ins: ClassVar[Callable[..., None]]
        _pop: ClassVar[Callable[..., Any]]
        _set: ClassVar[Callable[..., None]]
        _cut: ClassVar[Callable[..., None]]

        def _feed(self, feed: Iterator[T]) -> None: ...
        def _fit(self) -> None: ...

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
                if self._is_told:
                    self._fit()
                else:
                    self._evicted += len(self) - self._keep
                    self._cut(self._stale)
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
