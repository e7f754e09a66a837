"""Hold values weakly, the last ones strongly, and know when they die.

Covers: the index, death and age of entries, what the strong tier lets go, counting, locking.
Leaves to others: the mapping and the factories (`_weak_cache`), who is strong
(`_tier`).

Death: the callback of each weak reference is the C method `deque.append`. It runs in whatever code dropped the last
reference, perhaps in the middle of one of our own lines: a lock taken there would deadlock itself, and a dictionary
changed there would change under its reader. So the dead queue up, and the next operation that takes the lock buries
them.

Locking: every operation takes a lock, re-entrant because a finaliser may use the cache in the middle of another
operation of the same thread; only a hit in `_hot` takes none. What an operation lets go is put into `gone`, told and
released after the lock: destroying a value runs its owner's code.
"""

import math
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Generic, TypeAlias, TypeVar
from weakref import ref

from memtools._records import record
from memtools.errors import ConfigError, NotWeakReferenceable
from memtools.readings import Level
from memtools.structures._eviction import EvictionHook
from memtools.structures._single_flight import MISSING, Missing, Pending
from memtools.units import parse_count, parse_seconds, parse_size

# One entry of a cache: a weak reference that knows its key, or a box for a value that cannot be weakly referenced.
#
# Leaves to others: where entries are kept and when they go (`_store`).
#
# Both are called to get at the value. A `WeakEntry` is made by `ref` itself and gets its fields afterwards: a constructor
# of our own would cost more than the rest of storing a value.

K = TypeVar("K")
V = TypeVar("V")


class WeakEntry(ref[V], Generic[K, V]):
    """A weak reference to a value, which still knows the key when the value has died."""

    __slots__ = ("expires_at", "key", "size_bytes")

    key: K
    size_bytes: int  # as `sizeof` said when the value was set; 0 where no bound asks for it
    expires_at: float  # on the cache's clock, in seconds; infinite without a ttl


class HeldEntry(Generic[K, V]):
    """A box for a value that cannot be weakly referenced; it lives as long as the strong tier keeps it."""

    __slots__ = ("expires_at", "key", "size_bytes", "value")

    key: K
    size_bytes: int
    expires_at: float

    def __init__(self, value: V) -> None:
        self.value = value

    def __call__(self) -> V:
        return self.value


Entry: TypeAlias = WeakEntry[K, V] | HeldEntry[K, V]


def value_of(entry: Entry[K, V]) -> V | Missing:
    """Return the entry's value, or `MISSING` where it has died."""
    value = entry()
    # None cannot be weakly referenced: from a weak reference it means death, from a box it is the value.
    if value is None and isinstance(entry, WeakEntry):
        return MISSING
    return value  # type: ignore[return-value]  # the None of a dead reference has just been told apart


# What a cache was asked to be, checked once.
#
# Leaves to others: what each choice does (`_store`).


@record
class CacheSettings(Generic[K, V]):
    """The arguments of a `WeakCache`, in units that need no further reading.

    Attributes:
        strong: most entries that are held strongly.
        ttl_s: how long an entry is valid after it was set, in seconds.
        max_bytes: most bytes, by shallow size, that are held strongly.
        on_evict: told of each entry that the strong tier lets go by itself.
        weak_only: whether values that cannot be weakly referenced are refused.
        sizeof: gives the bytes of a value.
        shrinkable: whether the cache is asked to shrink when memory runs short.
        clock: gives the time in seconds, never going back.
    """

    strong: int
    ttl_s: float | None
    max_bytes: int | None
    on_evict: Callable[[K, V], object] | None
    weak_only: bool
    sizeof: Callable[[V], int]
    shrinkable: bool
    clock: Callable[[], float]


def read_settings(
    *,
    strong: int,
    ttl: float | None,
    max_bytes: int | str | None,
    on_evict: Callable[[K, V], object] | None,
    weak_only: bool,
    sizeof: Callable[[V], int],
    shrinkable: bool,
    clock: Callable[[], float],
) -> CacheSettings[K, V]:
    """Return the settings.

    Raises:
        ConfigError: for a choice that makes no sense.
    """
    if on_evict is not None and not callable(on_evict):
        raise ConfigError("on_evict", on_evict, "a callable that takes a key and its value, or None")
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a callable that takes a value and returns its bytes")
    if not callable(clock):
        raise ConfigError("clock", clock, "a callable that returns seconds")

    return CacheSettings(
        strong=parse_count(strong, name="strong", minimum=0),
        ttl_s=_read_ttl(ttl),
        max_bytes=None if max_bytes is None else parse_size(max_bytes, name="max_bytes"),
        on_evict=on_evict,
        weak_only=_read_flag(weak_only, "weak_only"),
        sizeof=sizeof,
        shrinkable=_read_flag(shrinkable, "shrinkable"),
        clock=clock,
    )


def _read_ttl(ttl: float | None) -> float | None:
    if ttl is None:
        return None
    seconds = parse_seconds(ttl, name="ttl")
    if seconds == 0:
        raise ConfigError("ttl", ttl, "seconds above 0, or None for entries that do not age")
    return seconds


def _read_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(name, value, "True or False")
    return value


# Keep what was used last alive, in two generations.
#
# Covers: who is held strongly, who goes when there is no room.
# Leaves to others: what becomes of those who go, locking, telling the user (`_store`).
#
# An entry enters the young generation. When that is full it becomes the old one as a whole, and what was still in the
# old one goes. Whoever is used again is young again. So at least the half used last is always there, and a use of what
# is young changes nothing: no order has to be kept, and so no lock has to be taken.
#
# Threads: the caller holds a lock, a re-entrant one. A finaliser may run wherever memory is allocated and use the same
# tier in the middle of a method, so the generations change places in one statement that calls and allocates nothing.


class StrongTier(Generic[K, V]):
    """At most `most` values, of at most `most_bytes` bytes together, held strongly.

    Attributes:
        young: what was set or used last.
        old: what was young before.
    """

    __slots__ = ("_most", "_most_bytes", "_old_bytes", "_room", "_young_bytes", "old", "young")

    def __init__(self, most: int, most_bytes: int | None) -> None:
        self.young: dict[K, V] = {}
        self.old: dict[K, V] = {}
        self._most = most
        self._most_bytes = most_bytes
        self._room = (most + 1) // 2
        self._young_bytes = 0
        self._old_bytes = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    @property
    def size_bytes(self) -> int:
        """The bytes that are held, by the sizes that came with the entries."""
        return self._young_bytes + self._old_bytes

    def hold(self, key: K, value: V, size_bytes: int) -> dict[K, V] | None:
        """Hold an entry as the one used last; return those who had to go for it, perhaps itself."""
        young = self.young
        if key in young:
            return None
        if self._most_bytes is not None:
            return self._hold_weighed(key, value, size_bytes, self._most_bytes)

        self.old.pop(key, None)
        gone = self._age() if len(young) >= self._room else None
        self.young[key] = value
        # Too many only with an odd `most`: both halves are rounded up.
        return self.drop_old() if len(self.young) + len(self.old) > self._most else gone

    def _hold_weighed(self, key: K, value: V, size_bytes: int, most_bytes: int) -> dict[K, V]:
        if size_bytes > most_bytes:
            return {key: value}
        self.release(key, size_bytes)

        # Half of the bytes for each generation, though a single large entry may have more.
        is_full = len(self.young) >= self._room or self._young_bytes + size_bytes > most_bytes // 2
        gone = self._age() if self.young and is_full else {}
        self.young[key] = value
        self._young_bytes += size_bytes
        if len(self) > self._most or self.size_bytes > most_bytes:
            gone |= self.drop_old()
        return gone

    def release(self, key: K, size_bytes: int) -> V | Missing:
        """Hold an entry no longer; return its value, or `MISSING` where it was not held."""
        value: V | Missing = self.young.pop(key, MISSING)
        if value is not MISSING:
            self._young_bytes -= size_bytes
            return value

        value = self.old.pop(key, MISSING)
        if value is not MISSING:
            self._old_bytes -= size_bytes
        return value

    def drop_old(self) -> dict[K, V]:
        """Let the old generation go and return it."""
        fresh: dict[K, V] = {}
        gone, self.old, self._old_bytes = self.old, fresh, 0
        return gone

    def _age(self) -> dict[K, V]:
        fresh: dict[K, V] = {}
        gone, self.old, self.young = self.old, self.young, fresh
        # The sums cannot drift for long, whatever a finaliser does in between: each starts anew with its generation.
        self._old_bytes, self._young_bytes = self._young_bytes, 0
        return gone


# A hit without the lock is one lookup in a dictionary and one count. With the GIL no thread comes in between the load
# and the store of `+= 1` (the interpreter looks for other threads only at calls, at the start of a function and at
# jumps back). Without it nobody promises that, so the young generation stays hidden and every hit takes the lock.
HITS_NEED_LOCK = not getattr(sys, "_is_gil_enabled", lambda: True)()

_EXPIRED_AT_ONCE = 16  # a write adds one entry and removes up to so many by age: it keeps up, and never pauses long


class CacheStore(Generic[K, V]):
    """What a `WeakCache` is made of, below its mapping methods."""

    __slots__ = (
        "_bury",
        "_dead",
        "_evictions",
        "_expirations",
        "_has_held",
        "_hits",
        "_hook",
        "_hot",
        "_index",
        "_is_shrinking",
        "_lock",
        "_misses",
        "_pending",
        "_settings",
        "_shows_hot",
        "_tier",
    )

    _hits: int
    _misses: int

    def _begin(self, settings: CacheSettings[K, V]) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._hook = EvictionHook(settings.on_evict)
        self._pending: Pending[K, V] = Pending()
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        self._expirations = 0
        self._dead: deque[WeakEntry[K, V]] = deque()
        self._bury = self._dead.append
        self._is_shrinking = False  # whether there was too little time to let all go that was to go
        self._has_held = False  # whether there was ever a value that cannot be weakly referenced
        self._shows_hot = settings.ttl_s is None and not HITS_NEED_LOCK
        self._reset()

    def _reset(self) -> None:
        # With a ttl the index is in the order of setting, and a plain dict pays for each removal at its front.
        self._index: dict[K, Entry[K, V]] = {} if self._settings.ttl_s is None else OrderedDict()
        self._tier: StrongTier[K, V] = StrongTier(self._settings.strong, self._settings.max_bytes)
        # What a hit sees without the lock; nothing where a hit has more to look at than the key.
        self._hot: dict[K, V] = self._tier.young if self._shows_hot else {}

    def _now(self) -> float:
        # Without a ttl nothing expires before infinity, and 0 will do for the time.
        return 0.0 if self._settings.ttl_s is None else self._settings.clock()

    def _new_entry(self, key: K, value: V) -> Entry[K, V]:
        """Return an entry that is not in the index yet.

        Raises:
            NotWeakReferenceable: if `value` cannot be weakly referenced and this cache does nothing else.
            Exception: what `sizeof` or the clock raises.
        """
        settings = self._settings
        entry: Entry[K, V]
        try:
            entry = WeakEntry(value, self._bury)
        except TypeError:
            if settings.weak_only or settings.strong == 0:
                raise NotWeakReferenceable(type(value).__qualname__) from None
            entry = HeldEntry(value)
            self._has_held = True

        entry.key = key
        entry.size_bytes = 0 if settings.max_bytes is None else settings.sizeof(value)
        entry.expires_at = math.inf if settings.ttl_s is None else settings.clock() + settings.ttl_s
        return entry

    def _ask(self, key: K) -> V | Missing:
        """Look for a value that the hot path has not found, and count how it went."""
        if self._shows_hot:
            # No age to look at, and the index may be read without the lock as well.
            entry = self._index.get(key)
            value = None if entry is None else entry()
            if entry is not None and value is not None:
                self._hits += 1
                if self._settings.strong:
                    self._make_young(key, entry, value)
                return value

        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            found = self._find(key, now, gone)
            if found is MISSING:
                self._misses += 1
            else:
                self._hits += 1
        self._tell(gone)
        return found

    def _make_young(self, key: K, entry: Entry[K, V], value: V) -> None:
        gone = None
        with self._lock:
            # It was found without the lock: it may have been removed since.
            if self._index.get(key) is entry:
                gone = self._tier.hold(key, value, entry.size_bytes)
                self._hot = self._tier.young
                if gone:
                    self._let_go(gone)
        if gone:
            self._hook.tell(gone)

    def _peek(self, key: K) -> V | Missing:
        """Look for a value without using it: nothing is counted, nothing becomes young."""
        now = self._now()
        with self._lock:
            entry = self._index.get(key)
            if entry is None or entry.expires_at <= now:
                return MISSING
            return value_of(entry)

    def _put(self, entry: Entry[K, V], value: V) -> None:
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            former = self._store(entry, value, now, gone)
        self._tell(gone)
        del former  # here, not under the lock

    def _put_if_absent(self, entry: Entry[K, V], value: V) -> V:
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            value, former = self._store_if_absent(entry, value, now, gone)
        self._tell(gone)
        del former
        return value

    def _take(self, key: K) -> V | Missing:
        """Remove an entry; return its value if it was alive and valid."""
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            self._pending.forget(key)
            entry = self._index.pop(key, None)
            value = MISSING if entry is None else self._retire(entry, now, gone)
        self._tell(gone)
        return value

    def _take_last(self) -> tuple[K, V] | None:
        """Remove the entry that was set last, of those alive and valid."""
        now = self._now()
        gone: list[dict[K, V]] = []
        taken: tuple[K, V] | None = None
        with self._lock:
            while self._index and taken is None:
                key, entry = self._index.popitem()
                value = self._retire(entry, now, gone)
                if value is not MISSING:
                    self._pending.forget(key)
                    taken = key, value
        self._tell(gone)
        return taken

    def _count(self) -> int:
        """Return how many entries are alive and valid now."""
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            self._sweep(now, gone)
            entries = len(self._index)
        self._tell(gone)
        return entries

    def _snapshot(self) -> list[Entry[K, V]]:
        """Return the entries that are alive and valid now; the list keeps no weakly held value alive."""
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            self._sweep(now, gone)
            entries = list(self._index.values())
        self._tell(gone)
        return entries

    def _tell(self, gone: list[dict[K, V]]) -> None:
        for entries in gone:
            self._hook.tell(entries)

    # What follows is called with the lock held.

    def _find(self, key: K, now: float, gone: list[dict[K, V]]) -> V | Missing:
        """Return the value that is valid now, as the one used last."""
        if self._dead:
            self._bury_dead()
        entry = self._index.get(key)
        if entry is None:
            return MISSING
        if entry.expires_at <= now:
            self._expire(entry, gone)
            return MISSING

        value = value_of(entry)
        if value is not MISSING:
            self._hold(entry, value, gone)
        return value

    def _store(self, entry: Entry[K, V], value: V, now: float, gone: list[dict[K, V]]) -> object:
        """Put an entry in the place of the former one; return what has to be released after the lock."""
        if self._dead:
            self._bury_dead()
        self._expire_oldest(now, _EXPIRED_AT_ONCE, gone)

        key = entry.key
        former = self._index.pop(key, None)
        released = MISSING if former is None else self._tier.release(key, former.size_bytes)
        self._index[key] = entry
        self._hold(entry, value, gone)
        return former, released

    def _store_if_absent(self, entry: Entry[K, V], value: V, now: float, gone: list[dict[K, V]]) -> tuple[V, object]:
        found = self._find(entry.key, now, gone)
        if found is not MISSING:
            return found, None
        return value, self._store(entry, value, now, gone)

    def _hold(self, entry: Entry[K, V], value: V, gone: list[dict[K, V]]) -> None:
        if self._settings.strong == 0:
            return
        let_go = self._tier.hold(entry.key, value, entry.size_bytes)
        if self._shows_hot:
            self._hot = self._tier.young
        if let_go:
            self._let_go(let_go)
            gone.append(let_go)

    def _let_go(self, entries: dict[K, V]) -> None:
        """Count those who left the strong tier; whoever cannot be weakly referenced has left the cache."""
        self._evictions += len(entries)
        if not self._has_held:
            return
        for key in entries:
            if isinstance(self._index.get(key), HeldEntry):
                self._index.pop(key, None)

    def _bury_dead(self, at_most: int = sys.maxsize) -> int:
        """Remove the entries of dead values; return how many were looked at."""
        dead, index = self._dead, self._index
        buried = 0
        while dead and buried < at_most:
            buried += 1
            try:
                entry = dead.popleft()
                # Two steps without a call in between: a finaliser that sets the key anew cannot slip in.
                if index[entry.key] is entry:
                    del index[entry.key]
            except (IndexError, KeyError):  # a finaliser was here first, or the entry was removed before it died
                continue
        return buried

    def _sweep(self, now: float, gone: list[dict[K, V]]) -> None:
        """Leave only what is alive and valid."""
        self._bury_dead()
        self._expire_oldest(now, len(self._index), gone)

    def _expire_oldest(self, now: float, at_most: int, gone: list[dict[K, V]]) -> int:
        """Remove what is too old, the oldest first; return how many were removed."""
        if self._settings.ttl_s is None:
            return 0
        for removed in range(at_most):
            oldest = next(iter(self._index.values()), None)
            if oldest is None or oldest.expires_at > now:
                return removed
            self._expire(oldest, gone)
        return at_most

    def _expire(self, entry: Entry[K, V], gone: list[dict[K, V]]) -> None:
        self._index.pop(entry.key, None)
        self._retire(entry, entry.expires_at, gone)

    def _retire(self, entry: Entry[K, V], now: float, gone: list[dict[K, V]]) -> V | Missing:
        """Take an entry, which is out of the index, out of the strong tier; return its value if it is valid now."""
        value = value_of(entry)
        released = self._tier.release(entry.key, entry.size_bytes)
        if entry.expires_at > now:
            return value

        self._expirations += 1
        if released is not MISSING:
            self._evictions += 1
            gone.append({entry.key: released})
        return MISSING


# Give memory back when it runs short.
#
# Covers: letting the strong tier go in slices, and an honest figure of what that gave back.
# Leaves to others: when it is time (`memtools.monitor`), who is asked (`memtools.cleanup`).

_SLICE = 256  # entries that go between two looks at the deadline
# Keys that are listed at once: a walk through a dictionary begins with all the places that were emptied before, and to
# list a million keys would stop everybody who needs the lock.
_LISTED = 16_384


class ShrinkingStore(CacheStore[K, V]):
    """A store that can give memory back."""

    __slots__ = ()

    @property
    def is_shrinking(self) -> bool:
        """Whether the last `shrink` had to stop at its deadline; the next one goes on where it stopped."""
        return self._is_shrinking

    def shrink(self, level: Level, deadline: float, /) -> int:
        """Give memory back: at `WARNING` the old half of the strong tier, at `CRITICAL` all of it.

        Values that somebody else holds are still found. `on_evict` is told.

        Args:
            level: how short memory is; `NORMAL` only removes what is dead or too old.
            deadline: when to stop, in seconds of `time.monotonic()`; what is left stays strong.

        Returns:
            The shallow bytes of the values that ended by this: those that died at once, and those that cannot be
            weakly referenced, of which nobody knows whether they are held elsewhere. What a value refers to is not
            counted, nor one in a circle, which waits for the garbage collector, nor what was too old.
        """
        self._clear_away(deadline)
        # Counted now: what is set or used from here on may stay.
        old = len(self._tier.old) if level >= Level.WARNING else 0
        young = len(self._tier.young) if level >= Level.CRITICAL else 0

        freed_bytes = 0
        self._is_shrinking = False
        for keys in chain(self._oldest(old, is_old=True), self._oldest(young, is_old=False)):
            if time.monotonic() >= deadline:
                self._is_shrinking = True
                break
            freed_bytes += self._release_all(keys)
        return freed_bytes

    def __sizeof__(self) -> int:
        # Its own tables belong to it as the places of a list belong to the list.
        tables = self._index, self._tier.young, self._tier.old
        return super().__sizeof__() + sum(map(sys.getsizeof, tables))

    def _oldest(self, count: int, *, is_old: bool) -> Iterator[list[K]]:
        """Yield the first `count` keys of one generation in portions; each must be released before the next."""
        for start in range(0, count, _LISTED):
            with self._lock:
                generation = self._tier.old if is_old else self._tier.young
                keys = list(islice(generation, min(_LISTED, count - start)))
            for first in range(0, len(keys), _SLICE):
                yield keys[first : first + _SLICE]

    def _clear_away(self, deadline: float) -> None:
        now = self._now()
        removed = _SLICE
        while removed == _SLICE and time.monotonic() < deadline:
            gone: list[dict[K, V]] = []
            with self._lock:
                removed = max(self._bury_dead(_SLICE), self._expire_oldest(now, _SLICE, gone))
            self._tell(gone)

    def _release_all(self, keys: list[K]) -> int:
        values: dict[K, V] = {}
        entries: list[Entry[K, V]] = []
        with self._lock:
            self._bury_dead(2 * _SLICE)  # those of the slice before, or the next caller would have to bury them all
            for key in keys:
                entry = self._index.get(key)
                value = MISSING if entry is None else self._tier.release(key, entry.size_bytes)
                if entry is not None and value is not MISSING:
                    entries.append(entry)
                    values[key] = value
            self._let_go(values)
        value = MISSING

        self._hook.tell(values)
        sizes = [self._size_of(entry, values[entry.key]) for entry in entries]
        values.clear()
        return sum(
            size_bytes
            for entry, size_bytes in zip(entries, sizes, strict=True)
            if isinstance(entry, HeldEntry) or entry() is None
        )

    def _size_of(self, entry: Entry[K, V], value: V) -> int:
        if self._settings.max_bytes is not None:
            return entry.size_bytes
        try:
            return self._settings.sizeof(value)
        except Exception:
            # The figure is a courtesy to whoever watches memory; memory is given back without it.
            return 0


# How a cache fares, as one frozen record.
#
# Leaves to others: how the figures are counted (`_store`).


@record
class CacheStatistics:
    """How a cache fared since it was made, and what is in it now.

    Attributes:
        hits: how often a key that was asked for was there.
        misses: how often it was not.
        strong: entries that the strong tier keeps alive.
        weak: entries that only live because somebody else holds the value.
        strong_only: those among `strong` that cannot be weakly referenced, so that they end with their place there.
        strong_bytes: shallow size of the strong tier, in bytes; None where no `max_bytes` asks for it.
        evictions: entries that the strong tier let go by itself: for want of room, by age, or to give memory back.
        expirations: entries that ended by age, strong or weak.
        making: factories that run now.
        hook_failures: calls of `on_evict` that raised.
    """

    hits: int
    misses: int
    strong: int
    weak: int
    strong_only: int
    strong_bytes: int | None
    evictions: int
    expirations: int
    in_progress: int
    hook_failures: int

    @property
    def hit_ratio(self) -> float:
        """The share of hits, from 0 to 1; 0 before the first question."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
