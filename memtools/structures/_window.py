"""Bounded list core: a list that keeps `maxlen` items after each call.

The methods that add items come from a core class, which is written in C where it could be built and in Python
elsewhere. Methods that only read or remove items are those of `list` itself.
"""

import inspect
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, SupportsIndex, TypeVar, overload

from memtools._forks import register_after_fork
from memtools._records import record
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.structures._eviction import EvictionHook
from memtools.units import parse_count, parse_size

T = TypeVar("T")
S = TypeVar("S")

# Items may be of any type: the list that owns the function knows which.
Sizeof = Callable[[Any], int]
OnEvict = Callable[[list[Any]], object]

DEFAULT_MAXLEN: Final = 1000  # as that of `bounded_history`

# By level: structures of more items than the first figure are shortened, but not below the second.
SHRINK_ABOVE: Final = {Level.WARNING: (500, 250), Level.CRITICAL: (100, 50)}

_MIN_CHUNK: Final = 1024  # items; from here on, the cost of a portion is small against the cost of its items

# Held by the lists in Python while they evict, and on builds without a GIL while they add. One for all, since a child
# of a fork has to renew it; re-entrant: a finaliser that runs in between may add to a list.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


register_after_fork(_renew_lock)


class Unset(Enum):
    """The value of an argument that was not given, where None is a value."""

    UNSET = "the default"


@record
class ListBounds:
    """The checked arguments of a list, shared with its copies.

    Attributes:
        maxlen: the maximum number of items; None if only bytes are bounded.
        keep: how many items an overflow leaves; None where `maxlen` is None.
        max_bytes: the maximum of bytes of all items, by shallow size; None for no limit.
        sizeof: returns the shallow size of an item, in bytes.
        on_evict: called with a list of evicted items, or None.
        shrinkable: whether the list is asked to shrink when memory runs short.
    """

    maxlen: int | None
    keep: int | None
    max_bytes: int | None
    sizeof: Sizeof
    on_evict: OnEvict | None
    shrinkable: bool

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may go to another process, so it leaves out the hook and what the hook refers to.
        return ListBounds, (self.maxlen, self.keep, self.max_bytes, self.sizeof, None, self.shrinkable)


def parse_bounds(
    maxlen: int | None,
    keep: int | None,
    max_bytes: int | str | None,
    sizeof: Sizeof,
    on_evict: OnEvict | None,
    shrinkable: object,
) -> ListBounds:
    """Return the bounds of a list.

    Raises:
        ConfigError: for an argument that makes no sense; see `BoundedList`.
    """
    if maxlen is None and max_bytes is None:
        raise ConfigError("maxlen", None, "a whole number of at least 0; None only with max_bytes")
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a function that takes an item and returns its size in bytes")
    check_hook(on_evict, "a list of items")
    if not isinstance(shrinkable, bool):
        raise ConfigError("shrinkable", shrinkable, "True or False")

    items = None if maxlen is None else parse_count(maxlen, name="maxlen", minimum=0)
    size = None if max_bytes is None else parse_size(max_bytes, name="max_bytes")
    return ListBounds(items, _parse_keep(keep, items), size, sizeof, on_evict, shrinkable)


def _parse_keep(keep: int | None, maxlen: int | None) -> int | None:
    if keep is None:
        return maxlen
    if maxlen is None:
        raise ConfigError("keep", keep, "None where maxlen is None")
    if parse_count(keep, name="keep", minimum=0) > maxlen:
        raise ConfigError("keep", keep, f"a whole number from 0 to maxlen, {maxlen}")
    return keep


def check_hook(on_evict: Callable[..., object] | None, arguments: str) -> None:
    """Check the argument `on_evict` of a structure, which calls it with `arguments`.

    Raises:
        ConfigError: for what is neither a plain function nor None.
    """
    if on_evict is None:
        return
    if not callable(on_evict):
        raise ConfigError("on_evict", on_evict, f"a function that takes {arguments}, or None")
    if inspect.iscoroutinefunction(on_evict):
        raise ConfigError("on_evict", on_evict, "a plain function: a coroutine would not be awaited")


class BoundsMixin:
    """What a list and a dictionary within bounds say of themselves, and how both restore their bounds."""

    __slots__ = ()

    if TYPE_CHECKING:  # provided by `BoundedListBase` and `BoundedDictBase`
        _bounds: Any  # those of a list or of a dictionary
        _evicted: int
        _hook: EvictionHook[Any] | None  # which takes the items of a list or the entries of a dictionary
        _size_bytes: int

        def __len__(self) -> int: ...
        def _recompute(self) -> None: ...
        def _enforce_bounds(self) -> None: ...

    def _statistics_as(self, kind: Callable[..., S], **more: int) -> S:
        """Return the record `kind` of what lists and dictionaries have in common, and of `more`."""
        bounds = self._bounds
        return kind(
            length=len(self),
            maxlen=bounds.maxlen,
            keep=bounds.keep,
            size_bytes=None if bounds.max_bytes is None else self._size_bytes,
            max_bytes=bounds.max_bytes,
            evicted=self._evicted,
            hook_failures=0 if self._hook is None else self._hook.failures,
            **more,
        )

    def _restore_bounds(self) -> int:
        """Restore the bounds after a call that bypassed them; return how much was evicted."""
        before = self._evicted
        self._recompute()
        self._enforce_bounds()
        return self._evicted - before


class PyBoundedListCore(list[T]):
    """A list of at most `_limit` items; an overflow leaves the last `_keep` of them.

    The methods that add items. The C type does the same, calls the same methods of the subclass, and passes the same
    tests.
    """

    __slots__ = ("_chunk", "_evicted", "_has_hook", "_is_exact", "_keep", "_limit")

    _limit: int
    _keep: int
    _chunk: int  # items of a list or tuple that are added at once; larger ones are added like an iterator
    _evicted: int
    _is_exact: bool  # each item that is added evicts one, and there is no hook
    _has_hook: bool  # there is a hook

    if TYPE_CHECKING:  # provided by `BoundedListBase`
        _list_append: ClassVar[Callable[..., None]]
        _list_extend: ClassVar[Callable[..., None]]
        _list_insert: ClassVar[Callable[..., None]]
        _list_pop: ClassVar[Callable[..., Any]]
        _list_setitem: ClassVar[Callable[..., None]]
        _list_delitem: ClassVar[Callable[..., None]]

        def _extend_from_iterator(self, iterator: Iterator[T]) -> None: ...
        def _enforce_bounds(self) -> None: ...
        def _report(self, evicted: list[T]) -> None: ...

    def append(self, item: T, /) -> None:
        """Add `item` at the end; when the list is full, the oldest items are evicted."""
        self._list_append(item)
        if len(self) > self._limit:
            if self._is_exact:
                try:
                    self._list_pop(0)
                except IndexError:  # another thread has just emptied the list
                    return
                self._evicted += 1
            else:
                self._enforce_bounds()

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add all items of `iterable` at the end; when they are too many, the last `keep` items are left.

        The items of an iterator are added in portions of 1,024 items or an eighth of `maxlen`: there are never more of
        them than the bound and one portion. If the iterator fails, the items before the failure stay, as in a list.
        """
        kind = type(iterable)
        if (kind is list or kind is tuple) and len(iterable) <= self._chunk:  # type: ignore[arg-type]
            self._list_extend(iterable)
            if len(self) > self._limit:
                if self._has_hook:
                    self._enforce_bounds()
                else:
                    self._drop_oldest()
        else:
            self._extend_from_iterator(iter(iterable))

    def insert(self, index: SupportsIndex, item: T, /) -> None:
        """Put `item` before `index`; when the list is full, the oldest are evicted: at the front, `item` itself."""
        self._list_insert(index, item)
        if len(self) > self._limit:
            self._enforce_bounds()

    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __setitem__(self, index: Any, value: Any, /) -> None:  # Any: as wide as both forms
        self._list_setitem(index, value)
        if len(self) > self._limit:
            self._enforce_bounds()

    # Narrower than `__add__` by the rules of the language; typeshed silences this for `list` as well.
    def __iadd__(self, iterable: Iterable[T], /) -> Self:  # type: ignore[override, misc]
        self.extend(iterable)
        return self

    def _add(self, items: list[T], limit: int, keep: int, /) -> list[T]:
        """Add `items` within `limit`; return what was evicted, without reporting it.

        Where they are too many, the last `keep` are left.
        """
        with _lock:
            if len(self) + len(items) <= limit:
                self._list_extend(items)
                return []
            limit = max(limit, 0)  # computed from a length that another thread may have changed
            return self._exchange(items, sys.maxsize, limit, min(max(keep, 0), limit))

    def _drop_oldest(self) -> None:
        """Evict what is too much, without a list of it."""
        with _lock:
            length = len(self)
            if length > self._limit:
                self._list_delitem(slice(length - self._keep))
                self._evicted += length - self._keep

    def _exchange(self, items: list[T], index: int, limit: int, keep: int) -> list[T]:
        """Put `items` before `index`; return what was evicted for them."""
        with _lock:
            length = len(self)
            index = max(index + length, 0) if index < 0 else min(index, length)
            excess = length + len(items) - keep if length + len(items) > limit else 0
            before = min(index, excess)
            passed = min(len(items), excess - before)  # new items that go at once
            evicted = self._take_oldest(before)
            if before < excess:
                evicted += [*items[:passed], *self._take_oldest(excess - passed - before)]
            if passed < len(items):
                self._list_setitem(slice(index - before, index - before), items[passed:])
            self._evicted += len(evicted)
        return evicted

    def _take_oldest(self, count: int) -> list[T]:
        if count == 0:
            return []
        if count == 1:
            try:
                return [self._list_pop(0)]  # one step, which a `pop` by another thread cannot come into
            except IndexError:  # another thread has just emptied the list
                return []
        taken = self[:count]
        self._list_delitem(slice(len(taken)))
        return taken


class LockingListCore(PyBoundedListCore[T]):
    """The same for builds without a GIL, where threads run at once: all that adds holds a lock, and evicts first."""

    __slots__ = ()

    def append(self, item: T, /) -> None:
        """Add `item` at the end; when the list is full, the oldest items are evicted."""
        with _lock:
            if len(self) < self._limit:
                self._list_append(item)
                return
        self._report(self._exchange([item], sys.maxsize, self._limit, self._keep))

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add all items of `iterable` at the end; when they are too many, the last `keep` items are left.

        The items of an iterator are added in portions of 1,024 items or an eighth of `maxlen`: there are never more of
        them than the bound and one portion. If the iterator fails, the items before the failure stay, as in a list.
        """
        kind = type(iterable)
        if (kind is list or kind is tuple) and len(iterable) <= self._chunk:  # type: ignore[arg-type]
            self._report(self._exchange([*iterable], sys.maxsize, self._limit, self._keep))
        else:
            self._extend_from_iterator(iter(iterable))

    def insert(self, index: SupportsIndex, item: T, /) -> None:
        """Put `item` before `index`; when the list is full, the oldest are evicted: at the front, `item` itself."""
        at = operator.index(index)
        if not -sys.maxsize <= at <= sys.maxsize:
            raise OverflowError("cannot fit 'int' into an index-sized integer")  # as `list.insert` says
        self._report(self._exchange([item], at, self._limit, self._keep))


def choose_core() -> type[list[Any]]:
    """Return the core class: in C where it was built, in Python elsewhere and with `MEMTOOLS_NATIVE=0`."""
    has_gil: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    in_python = PyBoundedListCore if has_gil else LockingListCore
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return in_python

    try:
        from memtools.structures import _list_core  # not at the top: it is missing where there was no compiler
    except ImportError:
        return in_python
    register_after_fork(_list_core.renew_locks)
    return _list_core.CBoundedListCore


if TYPE_CHECKING:
    BoundedListCore = PyBoundedListCore
else:
    BoundedListCore = choose_core()


class BoundedListBase(BoundedListCore[T], BoundsMixin):
    """A list within its bounds, but for the bound in bytes."""

    # Those from `_max_bytes` on are used by lists with `max_bytes`, whose class must have the very same layout.
    __slots__ = (
        "__weakref__",
        "_batches",
        "_bounds",
        "_hook",
        "_max_bytes",
        "_size_bytes",
        "_sizes",
    )

    _bounds: ListBounds
    _hook: EvictionHook[list[Any]] | None
    _batches: "BatchSizer | None"  # of a `shrink` that stopped at its deadline
    _max_bytes: int
    _size_bytes: int
    _sizes: list[int]

    # A class attribute is one lookup where `super()` is a call: 12.5 against 16 times `deque.append`.
    _list_append: ClassVar[Callable[..., None]] = list[Any].append
    _list_extend: ClassVar[Callable[..., None]] = list[Any].extend
    _list_insert: ClassVar[Callable[..., None]] = list[Any].insert
    _list_pop: ClassVar[Callable[..., Any]] = list[Any].pop
    _list_setitem: ClassVar[Callable[..., None]] = list[Any].__setitem__
    _list_delitem: ClassVar[Callable[..., None]] = list[Any].__delitem__
    _imul: ClassVar[Callable[..., Any]] = list[Any].__imul__

    def _set_bounds(self, bounds: ListBounds) -> None:
        """Store `bounds`, without enforcing them."""
        self._bounds = bounds
        self._batches = None
        self._limit = sys.maxsize if bounds.maxlen is None else bounds.maxlen
        self._keep = self._limit if bounds.keep is None else bounds.keep
        self._is_exact = self._keep == self._limit > 0 and bounds.on_evict is None
        self._has_hook = bounds.on_evict is not None
        self._chunk = max(_MIN_CHUNK, self._limit // 8, self._limit - self._keep)
        self._evicted = 0
        self._hook = None if bounds.on_evict is None else EvictionHook(bounds.on_evict, arguments=_one_argument)

    def __imul__(self, times: SupportsIndex, /) -> Self:
        try:
            wanted = operator.index(times)
        except TypeError:
            return NotImplemented

        # Copies that would be evicted again are not made: `x *= 10**9` costs no more than the first overflow.
        enough = self._limit // len(self) + 1 if self else 0
        self._repeat(min(wanted, enough))
        return self

    def _repeat(self, times: int) -> None:
        self._imul(times)
        self._enforce_bounds()

    def _extend_from_iterator(self, iterator: Iterator[T]) -> None:
        """Extend the list from an iterator."""
        # The iterator may read this very list (`x.extend(x)`, `reversed(x)`), and deleting items would move the others
        # under it. So the items wait outside until there are more of them than the list had: then the iterator reads
        # something else.
        must_wait = len(self)
        waiting: list[T] = []
        overflowed = False

        try:
            while True:
                before = len(waiting)
                waiting.extend(islice(iterator, self._chunk))
                if len(waiting) - before < self._chunk:
                    return
                if len(waiting) > must_wait:
                    evicted = self._add(waiting, self._limit, self._limit)
                    waiting = []
                    must_wait = 0
                    overflowed = bool(evicted) or overflowed
                    self._report(evicted)
                    del evicted  # the next portion need not wait for it
        finally:
            self._report(self._add(waiting, self._keep if overflowed else self._limit, self._keep))

    def _extend_unchecked(self, other: "BoundedListBase[T]") -> None:
        """Add the items of a list with the same bounds."""
        self._list_extend(other[:])

    def _recompute(self) -> None:
        """Do nothing: without `max_bytes` there are no sizes."""

    def _enforce_bounds(self) -> None:
        """Enforce the bounds."""
        self._report(self._add([], self._limit, self._keep))

    def _trim_to(self, length: int) -> bool:
        """Evict the oldest items until `length` are left; return whether any were evicted."""
        evicted = self._add([], length, length)
        self._report(evicted)
        return bool(evicted)

    def _report(self, evicted: list[T]) -> None:
        """Report evicted items to the hook."""
        if self._hook is not None:
            self._hook.notify(evicted)


def _one_argument(items: list[Any]) -> tuple[tuple[list[Any]], ...]:
    return ((items,),)


# The slots that a copy fills by itself: what is left of the state was added by a subclass. Fields of the C type are no
# slots.
OWN_SLOTS: Final = frozenset((*BoundedListBase.__slots__, *PyBoundedListCore.__slots__))


class BatchSizer:
    """How many items of a long list `shrink` evicts at once, so that it returns by its deadline.

    A batch moves all items that stay (3 to 4 ms for 10 million) and then releases each item that goes, which takes from
    20 ns to microseconds, depending on what the item refers to. So the first batch is small, and the next ones grow as
    long as there is time. The object outlives a `shrink` that stopped at its deadline.

    Args:
        target_length: how many items are to stay.
        length: how many items the list has now.

    Attributes:
        target_length: how many items are to stay.
        size: how many items to evict in the next batch.
    """

    __slots__ = ("_elapsed_s", "_min_size", "_move_s", "size", "target_length")

    _FIRST_SIZE: Final = 256
    _MAX_SIZE: Final = 1 << 18  # the hook gets one batch as one list
    # With more items to move for each that is evicted, nearly all time would go into moving.
    _MAX_MOVED_PER_ITEM: Final = 4_000
    # Seconds to move one item: five times what was measured, so that heavy items are not taken for slow moving.
    _INITIAL_MOVE_S: Final = 2e-9

    def __init__(self, target_length: int, length: int) -> None:
        self.target_length = target_length
        self._min_size = length // self._MAX_MOVED_PER_ITEM + 1
        self.size = max(self._FIRST_SIZE, self._min_size)
        self._move_s = self._INITIAL_MOVE_S  # the lowest estimate of the batches so far
        self._elapsed_s = 0.0

    def fits(self, left_s: float) -> bool:
        """Return whether another batch fits into `left_s` seconds, if it takes as long as the last one."""
        return self._elapsed_s <= left_s

    def record(self, elapsed_s: float, length: int, timeout_s: float) -> None:
        """Record the duration of a batch on a list of `length` items, in a call that may take `timeout_s` in all."""
        self._elapsed_s = elapsed_s
        self._move_s = min(self._move_s, elapsed_s / length)
        moving_s = self._move_s * length
        # Where moving alone takes nearly all the time, releasing the items may take a quarter of it on top.
        releasing_s = max(timeout_s - moving_s, timeout_s / 4)
        if 2 * (elapsed_s - moving_s) <= releasing_s:
            self._resize(self.size * 2)
        elif elapsed_s - moving_s > releasing_s:
            self._resize(self.size // 2)

    def _resize(self, size: int) -> None:
        self.size = max(self._min_size, min(size, self._MAX_SIZE))
