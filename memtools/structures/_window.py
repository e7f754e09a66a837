"""A list that never ends a call with more than `maxlen` items: what stands on the calls that add.

Covers: taking the bounds, feeding from iterators in bounded portions, repeating, telling and counting what went.
Leaves to others: the calls that add (`_seat`: in C or in Python), arguments, copies and statistics (`_bounded_list`),
bytes (`_weighed`), the hook (`_eviction`).

Whatever only reads or removes is the list's own C method and is not touched.
"""

import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, SupportsIndex, TypeVar, overload

from memtools._records import record
from memtools.errors import ConfigError
from memtools.structures._eviction import Eviction, OnEvict
from memtools.units import parse_count, parse_size

# What a `BoundedList` was told to stay within: checked once, then shared and never changed.
#
# Leaves to others: keeping to it (`_window`, `_weighed`), telling of what went (`_eviction`).

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the price of importing inspect

# Items may be of any type; the list that owns it has the type to offer.
Sizeof = Callable[[Any], int]


@record
class ListBounds:
    """The bounds of one list and of its copies.

    Attributes:
        maxlen: the most items, or None where bytes alone decide.
        keep: how many items an overflow leaves; None where `maxlen` is None.
        max_bytes: the most bytes of items, by shallow size, or None.
        sizeof: gives the shallow size of an item, in bytes.
        on_evict: called with the items that had to go, or None.
        shrinkable: whether the list is on the register of things that can give memory back.
    """

    maxlen: int | None
    keep: int | None
    max_bytes: int | None
    sizeof: Sizeof
    on_evict: OnEvict | None
    shrinkable: bool

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may go to another process, where the hook has no meaning, and its object no business.
        return ListBounds, (self.maxlen, self.keep, self.max_bytes, self.sizeof, None, self.shrinkable)


def parse_bounds(
    maxlen: int | None,
    keep: int | None,
    max_bytes: int | str | None,
    sizeof: Sizeof,
    on_evict: OnEvict | None,
    shrinkable: object,
) -> ListBounds:
    """Return the bounds that these arguments mean.

    Raises:
        ConfigError: for anything that makes no sense; see `BoundedList`.
    """
    if maxlen is None and max_bytes is None:
        raise ConfigError("maxlen", None, "a whole number of at least 0; None only beside max_bytes")
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a function that takes an item and returns its size in bytes")
    _check_hook(on_evict)
    if not isinstance(shrinkable, bool):
        raise ConfigError("shrinkable", shrinkable, "True or False")

    most = None if maxlen is None else parse_count(maxlen, name="maxlen", minimum=0)
    size = None if max_bytes is None else parse_size(max_bytes, name="max_bytes")
    return ListBounds(most, _parse_keep(keep, most), size, sizeof, on_evict, shrinkable)


def _parse_keep(keep: int | None, maxlen: int | None) -> int | None:
    if keep is None:
        return maxlen
    if maxlen is None:
        raise ConfigError("keep", keep, "None where maxlen is None: bytes alone decide then")
    if parse_count(keep, name="keep", minimum=0) > maxlen:
        raise ConfigError("keep", keep, f"a whole number from 0 to maxlen, {maxlen}")
    return keep


def _check_hook(on_evict: OnEvict | None) -> None:
    if on_evict is None:
        return
    if not callable(on_evict):
        raise ConfigError("on_evict", on_evict, "a function that takes a list of items, or None")
    code = getattr(on_evict, "__code__", None)
    if getattr(code, "co_flags", 0) & _CO_COROUTINE:
        raise ConfigError("on_evict", on_evict, "a plain function: nobody would await a coroutine here")


# The calls that add to a list of at most so many items: `append`, `extend`, `insert`, `x[i:j] = y`, `x += y`.
#
# Covers: cutting the oldest after each of them. The type in `_fast_window.c` does the same in C; both pass one suite.
# Leaves to others: which of the two it is (`_seat`), and everything else (`_window`), whose methods it calls by name.

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


# Which type makes the calls that add to a bounded list: the one in C, or the one in Python.
#
# Leaves to others: what the two do (`_fast_window.c`, `_pure_window`).


def pick_seat() -> type[list[Any]]:
    """Return the C type where it was built and `MEMTOOLS_NATIVE=0` does not forbid it, or else the Python one."""
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return PureWindow

    try:
        # Not at the top: it is missing where there was no compiler, and refuses where there is no GIL.
        from memtools.structures import _fast_window
    except ImportError:
        return PureWindow
    return _fast_window.FastWindow


# How many items may go at once, so that a long list is shortened without stopping the world.
#
# Covers: the size of the next stroke, from what the last ones took; what is left to do when time has run out.
# Leaves to others: the clock, and letting items go (`_bounded_list`).
#
# A stroke moves every item that stays (3 to 4 ms for 10 million) and then lets go of each that goes (20 ns to
# microseconds, by what hangs on it). Nobody knows beforehand, so the first stroke is small and the next ones grow.

_FIRST = 256
# Items to be moved for each that goes, at most: below that, all time would go into moving.
_MOVED_PER_ITEM = 4_000
# To move one item, in seconds: five times what was measured. A stroke of heavy items is not taken for one that moves.
_MOVE_S = 2e-9
_MOST = 1 << 18  # the items of one stroke are told to the hook in one list


class Strokes:
    """The strokes by which one list is brought down to `goal` items; it outlives a call that ran out of time.

    Attributes:
        goal: how many items are to stay.
        size: how many may go in the next stroke.
    """

    __slots__ = ("_least", "_move_s", "_took_s", "goal", "size")

    def __init__(self, goal: int, length: int) -> None:
        self.goal = goal
        self._least = length // _MOVED_PER_ITEM + 1
        self.size = max(_FIRST, self._least)
        self._move_s = _MOVE_S  # to move one item, by the stroke that suggests the least
        self._took_s = 0.0

    def has_time(self, left_s: float) -> bool:
        """Whether another stroke would be done within `left_s` seconds, by what the last one took."""
        return self._took_s <= left_s

    def took(self, took_s: float, length: int, whole_s: float) -> None:
        """Learn that a stroke took `took_s` for a list of `length`, in a call that has `whole_s` seconds in all."""
        self._took_s = took_s
        self._move_s = min(self._move_s, took_s / length)
        moving_s = self._move_s * length
        # Where moving alone takes nearly all the time, the items get a quarter of it on top.
        room_s = max(whole_s - moving_s, whole_s / 4)
        if 2 * (took_s - moving_s) <= room_s:
            self._resize(self.size * 2)
        elif took_s - moving_s > room_s:
            self._resize(self.size // 2)

    def _resize(self, size: int) -> None:
        self.size = max(self._least, min(size, _MOST))


if TYPE_CHECKING:
    Seat = PureWindow
else:
    Seat = pick_seat()

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
