"""Bounds of a dictionary, and the dictionary that drops its oldest entries.

Reading is that of `dict` itself: no method that only reads is overridden. What adds is a call of `dict` and a look at
the length; what removes keeps the list of the oldest keys in step.
"""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias, TypeVar, cast, overload

from memtools._forks import register_after_fork
from memtools._records import record
from memtools.errors import ConfigError
from memtools.structures._cache_store import HITS_NEED_LOCK, parse_ttl
from memtools.structures._eviction import EvictionHook
from memtools.structures._single_flight import MISSING
from memtools.structures._window import BoundsMixin, Sizeof, check_hook, parse_bounds
from memtools.units import parse_choice

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

Drop: TypeAlias = Literal["oldest", "least_recent"]
# Keys and values may be of any type: the dictionary that owns the function knows which.
OnEvictEntry: TypeAlias = Callable[[Any, Any], object]

_MIN_CHUNK: Final = 1024  # entries; from here on, the cost of a portion is small against the cost of its entries
# The oldest keys that are listed at once. A walk through a dictionary begins with all the places that were emptied
# before, so one walk has to serve many evictions; but a list of a million keys would hold up every other thread.
_MIN_LISTED: Final = 32
_MAX_LISTED: Final = 16_384

# Held while entries are evicted, and by dictionaries with more bookkeeping in every change. One for all, since a child
# of a fork has to renew it (so take it from this module each time); re-entrant: a finaliser that runs in between may
# change a dictionary.
lock = threading.RLock()


def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


register_after_fork(_renew_lock)


@record
class DictBounds:
    """The checked arguments of a dictionary, shared with its copies.

    Attributes:
        maxlen: the maximum number of entries; None if only bytes are bounded.
        keep: how many entries an overflow leaves; None where `maxlen` is None.
        max_bytes: the maximum of bytes of all entries; None for no limit.
        ttl_s: how long an entry is valid after it was set, in seconds; None for no limit.
        drop: which entries an overflow drops first.
        sizeof: returns the shallow size of a value, in bytes.
        on_evict: called with the key and the value of each evicted entry, or None.
        shrinkable: whether the dictionary is asked to shrink when memory runs short.
        clock: returns monotonic seconds.
    """

    maxlen: int | None
    keep: int | None
    max_bytes: int | None
    ttl_s: float | None
    drop: str
    sizeof: Sizeof
    on_evict: OnEvictEntry | None
    shrinkable: bool
    clock: Callable[[], float]

    @property
    def are_tracked(self) -> bool:
        """Whether a dictionary needs to know more of its entries than their order."""
        return self.max_bytes is not None or self.ttl_s is not None or self.drop == "least_recent"

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may go to another process, so it leaves out the hook and what the hook refers to.
        limits = self.maxlen, self.keep, self.max_bytes, self.ttl_s, self.drop
        return DictBounds, (*limits, self.sizeof, None, self.shrinkable, self.clock)


def parse_dict_bounds(
    maxlen: int | None,
    keep: int | None,
    max_bytes: int | str | None,
    ttl: float | None = None,
    drop: str = "oldest",
    sizeof: Sizeof = sys.getsizeof,
    on_evict: OnEvictEntry | None = None,
    shrinkable: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> DictBounds:
    """Return the bounds of a dictionary.

    Raises:
        ConfigError: for an argument that makes no sense; see `BoundedDict`.
    """
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a function that takes a value and returns its size in bytes")
    common = parse_bounds(maxlen, keep, max_bytes, sizeof, None, shrinkable)
    check_hook(on_evict, "a key and its value")
    if not callable(clock):
        raise ConfigError("clock", clock, "a callable that returns seconds")
    return DictBounds(
        common.maxlen,
        common.keep,
        common.max_bytes,
        parse_ttl(ttl),
        parse_choice(drop, ("oldest", "least_recent"), name="drop"),
        sizeof,
        on_evict,
        shrinkable,
        clock,
    )


class BoundedDictBase(dict[K, V], BoundsMixin):
    """A dictionary of at most `_limit` entries; an overflow leaves the newest `_keep` of them."""

    # Half of them are used by dictionaries with more bookkeeping, whose class must have the very same layout.
    __slots__ = (
        "__weakref__",
        "_bounds",
        "_evicted",
        "_expired",
        "_expires",
        "_hook",
        "_is_exact",
        "_is_shrinking",
        "_is_sized",
        "_keep",
        "_limit",
        "_max_bytes",
        "_oldest",
        "_order",
        "_size_bytes",
        "_touch",
    )

    _bounds: DictBounds
    _limit: int
    _keep: int
    _evicted: int
    _expired: int
    _hook: EvictionHook[list[tuple[Any, Any]]] | None
    _is_exact: bool  # each entry that is added evicts one, and there is nothing else to do for it
    _is_shrinking: bool
    # The next keys to be dropped, the oldest last: an order that `popitem` takes the oldest from, in one step.
    _oldest: dict[K, None]
    _expires: OrderedDict[K, float] | None
    _is_sized: bool  # `max_bytes` is given
    _max_bytes: int
    _order: OrderedDict[K, int]
    _size_bytes: int
    _touch: Callable[[K], None] | None

    # A class attribute is one lookup where `super()` is a call.
    _dict_setitem: ClassVar[Callable[..., None]] = dict[Any, Any].__setitem__
    _dict_getitem: ClassVar[Callable[..., Any]] = dict[Any, Any].__getitem__
    _dict_delitem: ClassVar[Callable[..., None]] = dict[Any, Any].__delitem__
    _dict_contains: ClassVar[Callable[..., bool]] = dict[Any, Any].__contains__
    _dict_iter: ClassVar[Callable[..., Iterator[Any]]] = dict[Any, Any].__iter__
    _dict_items: ClassVar[Callable[..., Any]] = dict[Any, Any].items
    _dict_get: ClassVar[Callable[..., Any]] = dict[Any, Any].get
    _dict_pop: ClassVar[Callable[..., Any]] = dict[Any, Any].pop
    _dict_popitem: ClassVar[Callable[..., tuple[Any, Any]]] = dict[Any, Any].popitem
    _dict_setdefault: ClassVar[Callable[..., Any]] = dict[Any, Any].setdefault
    _dict_update: ClassVar[Callable[..., None]] = dict[Any, Any].update
    _dict_clear: ClassVar[Callable[..., None]] = dict[Any, Any].clear

    def _set_bounds(self, bounds: DictBounds) -> None:
        """Store `bounds`, without enforcing them."""
        self._bounds = bounds
        self._limit = sys.maxsize if bounds.maxlen is None else bounds.maxlen
        self._keep = self._limit if bounds.keep is None else bounds.keep
        self._evicted = self._expired = 0
        self._hook = None if bounds.on_evict is None else EvictionHook(bounds.on_evict, arguments=_entries)
        # Two threads without a GIL may lose a count.
        self._is_exact = self._keep == self._limit > 0 and bounds.on_evict is None and not HITS_NEED_LOCK
        self._is_shrinking = False
        self._oldest = {}

    def __setitem__(self, key: K, value: V, /) -> None:
        self._dict_setitem(key, value)
        if len(self) > self._limit:
            if self._is_exact and self._oldest:
                try:
                    oldest = self._oldest.popitem()[0]
                    self._dict_delitem(oldest)
                except KeyError:  # another thread has just taken it, or `dict.pop(x, key)` has removed it
                    pass
                else:
                    self._evicted += 1
                    if len(self) <= self._limit:
                        return
            self._enforce_bounds()

    def __delitem__(self, key: K, /) -> None:
        if self._oldest:
            self._oldest.pop(key, None)
        self._dict_delitem(key)

    # The overloads for names need not be repeated for keys that are texts.
    @overload  # type: ignore[override]
    def update(self, other: Mapping[K, V], /, **entries: V) -> None: ...
    @overload
    def update(self, other: Iterable[tuple[K, V]] = (), /, **entries: V) -> None: ...
    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Any = (), /, **entries: Any
    ) -> None:
        """Set all entries of a mapping or an iterable of pairs, then those given by name.

        When they are too many, `keep` entries are left. Those of an iterator are added in portions of 1,024 or an
        eighth of `maxlen`: there are never more of them than the bound and one portion.
        """
        if other is not self:
            self._add_all(other)
        if entries:
            self._add_all(entries)

    # Narrower than `__or__` by the rules of the language; typeshed silences this for `dict` as well.
    def __ior__(self, other: Any, /) -> Self:  # type: ignore[override, misc]  # Any: a mapping or pairs, as for `dict`
        self.update(other)
        return self

    @overload
    def setdefault(self: "BoundedDictBase[K, D | None]", key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: Any = None, /) -> Any:
        """Return the value of `key`; if there is none, set `default` and return it. This is atomic."""
        value = self._dict_setdefault(key, default)
        if len(self) > self._limit:
            self._enforce_bounds()
        return value

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V, /) -> V: ...
    @overload
    def pop(self, key: K, default: D, /) -> V | D: ...
    def pop(self, key: K, /, *default: Any) -> Any:
        """Remove `key` and return its value, or `default`.

        Raises:
            KeyError: if there is no value and no default.
        """
        if self._oldest:
            self._oldest.pop(key, None)
        return self._dict_pop(key, *default)

    def popitem(self) -> tuple[K, V]:
        """Remove the entry that was added last and return its key and value.

        Raises:
            KeyError: if the dictionary is empty.
        """
        entry = self._dict_popitem()
        if self._oldest:
            self._oldest.pop(entry[0], None)
        return entry

    def clear(self) -> None:
        """Remove all entries, without calling `on_evict`."""
        self._oldest.clear()
        self._dict_clear()

    def _add_all(self, other: Any) -> None:
        """Set all entries of a mapping or an iterable of pairs; they overflow at most once."""
        chunk = max(_MIN_CHUNK, self._limit // 8, self._limit - self._keep)
        overflowed = False
        try:
            for portion in _portions(other, chunk):
                overflowed = self._add_portion(portion) or overflowed
        finally:
            # After a failure, too: entries before it stay, as in a dict.
            self._evict_to(self._keep if overflowed else self._limit, self._keep)

    def _add_portion(self, portion: Any) -> bool:
        """Set entries and evict down to `maxlen`; return whether there were too many."""
        self._dict_update(portion)
        if len(self) <= self._limit:
            return False
        self._evict_to(self._limit, self._limit)
        return True

    def _enforce_bounds(self) -> None:
        """Evict what exceeds the bounds."""
        self._evict_to(self._limit, self._keep)

    def _evict_to(self, limit: int, keep: int) -> None:
        """Evict the entries that are to be dropped first until `keep` are left, if there are more than `limit`."""
        with lock:
            length = len(self)
            evicted = self._take_oldest(length - keep) if length > limit else []
        self._report(evicted)

    def _evict_count(self, count: int) -> list[tuple[K, V]]:
        """Evict so many entries, report and return them."""
        with lock:
            evicted = self._take_oldest(count)
        self._report(evicted)
        return evicted

    def _drop_expired(self) -> None:
        """Do nothing: without a ttl no entry expires."""

    def _recompute(self) -> None:
        """Forget what was remembered of the entries, after a call that bypassed the methods."""
        self._oldest.clear()

    def _live_items(self) -> list[tuple[K, V]]:
        """Return the entries that have not expired."""
        return list(self._dict_items())

    def _take_oldest(self, count: int) -> list[tuple[K, V]]:
        """Take out up to `count` entries, those first that are to be dropped first; the caller holds the lock."""
        taken: list[tuple[K, V]] = []
        taken_before = -1
        while len(taken) < count:
            try:
                key, _ = self._oldest.popitem()
            except KeyError:
                # Nothing came of the last list: keys whose hash has changed cannot be removed from a dict.
                if len(taken) == taken_before or not self._list_oldest(count - len(taken)):
                    break
                taken_before = len(taken)
                continue
            value = self._dict_pop(key, MISSING)
            if value is not MISSING:  # or it was removed by `dict.pop(x, key)`
                taken.append((key, value))
        self._evicted += len(taken)
        return taken

    def _list_oldest(self, count: int) -> bool:
        """List the oldest keys; return whether there are any."""
        wanted = min(max(count, len(self) // 8, _MIN_LISTED), _MAX_LISTED)
        while True:
            try:
                keys = list(islice(self._dict_iter(), wanted))
            except RuntimeError:  # a finaliser or another thread has changed the dictionary meanwhile
                continue
            keys.reverse()
            self._oldest = dict.fromkeys(keys)
            return bool(keys)

    def _report(self, evicted: list[tuple[K, V]]) -> None:
        """Report evicted entries to the hook."""
        if evicted and self._hook is not None:
            self._hook.notify(evicted)


def _entries(entries: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return entries


def _portions(other: Any, chunk: int) -> Iterator[Any]:
    """Yield what `dict.update` takes, in portions of so many entries at most."""
    if isinstance(other, dict) and len(cast("Sized", other)) <= chunk:
        yield other
        return

    source = cast("Any", other)  # of any kind, though the check above says otherwise
    # What has keys is a mapping, as `dict.update` sees it.
    is_mapping = hasattr(source, "keys")
    pairs: Iterator[Any] = ((key, source[key]) for key in source.keys()) if is_mapping else iter(source)  # noqa: SIM118
    while True:
        portion: list[Any] = []
        try:
            portion.extend(islice(pairs, chunk))
        finally:
            if portion:
                yield portion
        if len(portion) < chunk:
            return


# The slots that a copy fills by itself: what is left of the state was added by a subclass.
OWN_SLOTS: Final = frozenset(BoundedDictBase.__slots__)
