"""Storage of a cache: weak index, strong tier, expiry, shrinking.

Weakref callbacks only queue dead entries; the next operation that holds the lock removes them. A callback runs in
whatever code dropped the last reference, perhaps in the middle of an operation of this very cache: a lock taken there
would deadlock, and an index changed there would change under its reader. So the callback is the C method
`deque.append`.

Every operation but the fast path of a hit takes a lock, which is re-entrant because a finaliser may use the cache
during another operation of the same thread. What an operation removes is collected in `evicted` and `previous`, and is
reported and released after the lock: destroying a value runs code of the program.
"""

import logging
import math
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Final, Generic, TypeAlias, TypeVar
from weakref import ref

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools.errors import ConfigError, NotWeakReferenceable
from memtools.readings import Level
from memtools.structures._eviction import EvictionHook, measure
from memtools.structures._single_flight import MISSING, CallsInProgress, Missing
from memtools.units import parse_count, parse_seconds, parse_size

K = TypeVar("K")
V = TypeVar("V")

_logger = RateLimitedLogger(logging.getLogger("memtools.structures"))

# The fast path of a hit is one lookup in a dictionary and one count. With the GIL no other thread runs between the load
# and the store of `+= 1`: the interpreter switches threads only at calls, at the start of a function and at jumps back.
# Without the GIL there is no such guarantee, so the young generation stays hidden and every hit takes the lock.
HITS_NEED_LOCK: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()

# A write adds one entry and removes up to so many expired ones, so that expiry keeps up without a long pause.
_EXPIRED_PER_WRITE: Final = 16
# Dead entries that a lookup or a write removes at most: half a millisecond. When a generation is evicted, all of its
# values may die at once.
_DEAD_PER_CALL: Final = 1024
# Entries that are removed between two checks of the deadline.
_SLICE: Final = 256
# Keys that are listed under one lock. Each walk through a dictionary begins with all the places that were emptied
# before, so slices should not list their own keys; but to list a million keys at once would hold up every other thread.
_LISTED: Final = 16_384


class WeakEntry(ref[V], Generic[K, V]):
    """A weak reference to a value, which still knows the key after the value has died.

    It is made by the constructor of `ref` and gets its fields afterwards: a constructor in Python would cost more than
    the rest of storing a value.

    Attributes:
        key: the key in the index.
        size_bytes: what `sizeof` returned when the value was set; 0 without `max_bytes`.
        expires_at: on the clock of the cache, in seconds; infinite without a ttl.
    """

    __slots__ = ("expires_at", "key", "size_bytes")

    key: K
    size_bytes: int
    expires_at: float


class StrongEntry(Generic[K, V]):
    """A value that cannot be weakly referenced; it stays in the index as long as it is in the strong tier.

    It is called to get the value, as a weak reference is.

    Attributes:
        key, size_bytes, expires_at: as in `WeakEntry`.
        value: the value.
    """

    __slots__ = ("expires_at", "key", "size_bytes", "value")

    key: K
    size_bytes: int
    expires_at: float

    def __init__(self, value: V) -> None:
        self.value = value

    def __call__(self) -> V:
        return self.value


Entry: TypeAlias = WeakEntry[K, V] | StrongEntry[K, V]


def value_of(entry: Entry[K, V]) -> V | Missing:
    """Return the value of an entry, or `MISSING` if it has died."""
    value = entry()
    # None cannot be weakly referenced: in a weak entry it means that the value died, in a strong entry it is the value.
    if value is None and isinstance(entry, WeakEntry):
        return MISSING
    return value  # type: ignore[return-value]  # the None of a dead reference was excluded above


@record
class CacheSettings(Generic[K, V]):
    """The checked arguments of a `WeakCache`.

    Attributes:
        strong: the maximum number of entries that are held strongly.
        ttl_s: how long an entry is valid after it was set, in seconds; None for no limit.
        max_bytes: the maximum of bytes that are held strongly, by shallow size; None for no limit.
        on_evict: called with each entry that the strong tier evicts.
        weak_only: whether values that cannot be weakly referenced are refused.
        sizeof: returns the bytes of a value.
        shrinkable: whether the cache is asked to shrink when memory runs short.
        clock: returns monotonic seconds.
    """

    strong: int
    ttl_s: float | None
    max_bytes: int | None
    on_evict: Callable[[K, V], object] | None
    weak_only: bool
    sizeof: Callable[[V], int]
    shrinkable: bool
    clock: Callable[[], float]


def parse_settings(
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
    """Return the settings of a cache.

    Raises:
        ConfigError: for an argument that makes no sense.
    """
    if on_evict is not None and not callable(on_evict):
        raise ConfigError("on_evict", on_evict, "a callable that takes a key and its value, or None")
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a callable that takes a value and returns its bytes")
    if not callable(clock):
        raise ConfigError("clock", clock, "a callable that returns seconds")

    return CacheSettings(
        strong=parse_count(strong, name="strong", minimum=0),
        ttl_s=parse_ttl(ttl),
        max_bytes=None if max_bytes is None else parse_size(max_bytes, name="max_bytes"),
        on_evict=on_evict,
        weak_only=_parse_flag(weak_only, "weak_only"),
        sizeof=sizeof,
        shrinkable=_parse_flag(shrinkable, "shrinkable"),
        clock=clock,
    )


def parse_ttl(ttl: float | None) -> float | None:
    """Return the seconds for which an entry is valid; None for no limit.

    Raises:
        ConfigError: for what is no number of seconds above 0.
    """
    if ttl is None:
        return None
    seconds = parse_seconds(ttl, name="ttl")
    if seconds == 0:
        raise ConfigError("ttl", ttl, "seconds above 0, or None for entries that do not expire")
    return seconds


def _parse_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(name, value, "True or False")
    return value


@record
class CacheStatistics:
    """What a cache did since it was made, and what it holds now.

    Attributes:
        hits: lookups that found a value.
        misses: lookups that did not.
        strong: entries that the strong tier keeps alive.
        weak: entries whose values only other code keeps alive.
        strong_only: entries in `strong` whose values cannot be weakly referenced; they end when the tier evicts them.
        strong_bytes: shallow size of the strong tier in bytes; None without `max_bytes`.
        evictions: entries that left the strong tier for lack of space, by expiry, or when memory ran short.
        expirations: entries that expired, strong or weak.
        in_progress: factories that run now.
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
        """The share of hits among all lookups, from 0 to 1; 0 before the first lookup."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


class StrongTier(Generic[K, V]):
    """The values used last, held strongly, in two generations.

    An entry that is set or used enters the young generation. When that is full, it becomes the old generation as a
    whole, and the previous old generation is evicted. So the half used last always stays, and a use of a young entry
    changes nothing: no order has to be kept, and no lock has to be taken.

    The caller holds a re-entrant lock. A finaliser may run wherever memory is allocated, and use the same tier in the
    middle of a method; so the generations are exchanged in one statement that calls and allocates nothing.

    Args:
        max_entries: the maximum number of values.
        max_bytes: the maximum of bytes of all values; None for no limit.

    Attributes:
        young: the values set or used last.
        old: the values that were young before.
    """

    __slots__ = ("_max_bytes", "_max_entries", "_max_young", "_old_bytes", "_young_bytes", "old", "young")

    def __init__(self, max_entries: int, max_bytes: int | None) -> None:
        self.young: dict[K, V] = {}
        self.old: dict[K, V] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_young = (max_entries + 1) // 2
        self._young_bytes = 0
        self._old_bytes = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    @property
    def size_bytes(self) -> int:
        """The bytes of all values, by the sizes that were passed to `add`."""
        return self._young_bytes + self._old_bytes

    def add(self, key: K, value: V, size_bytes: int) -> dict[K, V] | None:
        """Hold an entry as the one used last; return the entries that are evicted for it, perhaps the entry itself."""
        young = self.young
        if key in young:
            return None
        if self._max_bytes is not None:
            return self._add_sized(key, value, size_bytes, self._max_bytes)

        self.old.pop(key, None)
        evicted = self._rotate() if len(young) >= self._max_young else None
        self.young[key] = value
        # Too many only with an odd maximum: both halves are rounded up.
        return self.pop_old_generation() if len(self.young) + len(self.old) > self._max_entries else evicted

    def _add_sized(self, key: K, value: V, size_bytes: int, max_bytes: int) -> dict[K, V]:
        if size_bytes > max_bytes:
            return {key: value}
        self.remove(key, size_bytes)

        # Half of the bytes for each generation, though a single large entry may have more.
        is_full = len(self.young) >= self._max_young or self._young_bytes + size_bytes > max_bytes // 2
        evicted = self._rotate() if self.young and is_full else {}
        self.young[key] = value
        self._young_bytes += size_bytes
        if len(self) > self._max_entries or self.size_bytes > max_bytes:
            evicted |= self.pop_old_generation()
        return evicted

    def remove(self, key: K, size_bytes: int) -> V | Missing:
        """Stop holding an entry; return its value, or `MISSING` if it was not held."""
        value: V | Missing = self.young.pop(key, MISSING)
        if value is not MISSING:
            self._young_bytes -= size_bytes
            return value

        value = self.old.pop(key, MISSING)
        if value is not MISSING:
            self._old_bytes -= size_bytes
        return value

    def pop_old_generation(self) -> dict[K, V]:
        """Stop holding the old generation, and return it."""
        empty: dict[K, V] = {}
        evicted, self.old, self._old_bytes = self.old, empty, 0
        return evicted

    def _rotate(self) -> dict[K, V]:
        empty: dict[K, V] = {}
        evicted, self.old, self.young = self.old, self.young, empty
        # If a finaliser interferes, the sums are wrong for one generation only: each starts anew with it.
        self._old_bytes, self._young_bytes = self._young_bytes, 0
        return evicted


class CacheStore(Generic[K, V]):
    """The part of a `WeakCache` below its mapping methods."""

    __slots__ = (
        "_calls",
        "_dead",
        "_enqueue_dead",
        "_evictions",
        "_expirations",
        "_has_fast_path",
        "_has_strong_only",
        "_hits",
        "_hook",
        "_hot",
        "_index",
        "_is_shrinking",
        "_lock",
        "_misses",
        "_settings",
        "_tier",
    )

    _hits: int
    _misses: int

    @property
    def is_shrinking(self) -> bool:
        """Whether the last `shrink` stopped at its deadline; the next one continues where it stopped."""
        return self._is_shrinking

    def shrink(self, level: Level, deadline: float, /) -> int:
        """Give memory back: at `WARNING` the old half of the strong tier, at `CRITICAL` all of it.

        Values that other code holds are still found. `on_evict` is called for each entry.

        Args:
            level: how short memory is; `NORMAL` only removes dead and expired entries.
            deadline: when to stop, in seconds of `time.monotonic()`; the rest stays strong.

        Returns:
            The shallow bytes of the values that ended: those that died at once, and those that cannot be weakly
            referenced, which other code may still hold. Not counted are what a value refers to, a value in a reference
            cycle, which waits for the garbage collector, and what had expired.
        """
        self._purge_until(deadline)
        # Counted now: an entry that is set or used from here on may stay.
        old = len(self._tier.old) if level >= Level.WARNING else 0
        young = len(self._tier.young) if level >= Level.CRITICAL else 0

        freed_bytes = 0
        self._is_shrinking = False
        for keys in chain(self._oldest_keys(old, is_old=True), self._oldest_keys(young, is_old=False)):
            if time.monotonic() >= deadline:
                self._is_shrinking = True
                break
            freed_bytes += self._release_slice(keys)
        return freed_bytes

    def __sizeof__(self) -> int:
        # The tables belong to the cache as its array of pointers belongs to a list.
        tables = self._index, self._tier.young, self._tier.old
        return super().__sizeof__() + sum(map(sys.getsizeof, tables))

    def _set_up(self, settings: CacheSettings[K, V]) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._hook: EvictionHook[dict[K, V]] | None = None
        if settings.on_evict is not None:
            self._hook = EvictionHook(settings.on_evict, arguments=lambda entries: entries.items())
        self._calls: CallsInProgress[K, V] = CallsInProgress(self._lock)
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        self._expirations = 0
        self._dead: deque[WeakEntry[K, V]] = deque()
        self._enqueue_dead = self._dead.append
        self._is_shrinking = False
        self._has_strong_only = False  # whether there was ever a value that cannot be weakly referenced
        self._has_fast_path = settings.ttl_s is None and not HITS_NEED_LOCK
        self._reset()

    def _reset(self) -> None:
        # With a ttl, the index is in the order of setting, and a plain dict would pay for each removal at its front.
        self._index: dict[K, Entry[K, V]] = {} if self._settings.ttl_s is None else OrderedDict()
        self._tier: StrongTier[K, V] = StrongTier(self._settings.strong, self._settings.max_bytes)
        # What a hit reads without the lock; always empty where a hit has to check more than the key.
        self._hot: dict[K, V] = self._tier.young if self._has_fast_path else {}

    def _now(self) -> float:
        # Without a ttl nothing expires before infinity, so the clock need not be read.
        return 0.0 if self._settings.ttl_s is None else self._settings.clock()

    def _new_entry(self, key: K, value: V) -> Entry[K, V]:
        """Return an entry that is not in the index yet.

        Raises:
            NotWeakReferenceable: if `value` cannot be weakly referenced and this cache only holds values weakly.
            ConfigError: if `sizeof` returns no whole number.
            Exception: what `sizeof` or the clock raises.
        """
        settings = self._settings
        entry: Entry[K, V]
        try:
            entry = WeakEntry(value, self._enqueue_dead)
        except TypeError:
            if settings.weak_only or settings.strong == 0:
                raise NotWeakReferenceable(type(value).__qualname__) from None
            entry = StrongEntry(value)
            self._has_strong_only = True

        entry.key = key
        entry.size_bytes = 0 if settings.max_bytes is None else self._measure(value)
        entry.expires_at = math.inf if settings.ttl_s is None else settings.clock() + settings.ttl_s
        return entry

    def _lookup(self, key: K) -> V | Missing:
        """Return a value that the fast path has not found, and count the hit or the miss."""
        if self._has_fast_path:
            # Nothing can have expired, and the index may be read without the lock as well.
            entry = self._index.get(key)
            value = None if entry is None else entry()
            if entry is not None and value is not None:
                self._hits += 1
                if self._settings.strong:
                    self._promote(key, entry, value)
                return value

        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            found = self._find(key, now, evicted)
            if found is MISSING:
                self._misses += 1
            else:
                self._hits += 1
        self._notify(evicted)
        return found

    def _promote(self, key: K, entry: Entry[K, V], value: V) -> None:
        evicted = None
        with self._lock:
            # It was found without the lock, so it may have been removed since.
            if self._index.get(key) is entry:
                evicted = self._tier.add(key, value, entry.size_bytes)
                self._hot = self._tier.young
                if evicted:
                    self._evict(evicted)
        if evicted and self._hook is not None:
            self._hook.notify(evicted)

    def _peek(self, key: K) -> V | Missing:
        """Return a value without using it: nothing is counted, nothing becomes young."""
        now = self._now()
        with self._lock:
            entry = self._index.get(key)
            if entry is None or entry.expires_at <= now:
                return MISSING
            return value_of(entry)

    def _put(self, entry: Entry[K, V], value: V) -> None:
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            previous = self._store(entry, value, now, evicted)
        self._notify(evicted)
        del previous  # here, not under the lock

    def _put_if_absent(self, entry: Entry[K, V], value: V) -> V:
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            value, previous = self._store_if_absent(entry, value, now, evicted)
        self._notify(evicted)
        del previous
        return value

    def _pop(self, key: K) -> V | Missing:
        """Remove an entry; return its value if it was alive and valid."""
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            self._calls.forget(key)
            entry = self._index.pop(key, None)
            value = MISSING if entry is None else self._remove(entry, now, evicted)
        self._notify(evicted)
        return value

    def _popitem(self) -> tuple[K, V] | None:
        """Remove the entry that was set last, among those that are alive and valid."""
        now = self._now()
        evicted: list[dict[K, V]] = []
        popped: tuple[K, V] | None = None
        with self._lock:
            while self._index and popped is None:
                key, entry = self._index.popitem()
                value = self._remove(entry, now, evicted)
                if value is not MISSING:
                    self._calls.forget(key)
                    popped = key, value
        self._notify(evicted)
        return popped

    def _count(self) -> int:
        """Return how many entries are alive and valid."""
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            self._purge(now, evicted)
            entries = len(self._index)
        self._notify(evicted)
        return entries

    def _snapshot(self) -> list[Entry[K, V]]:
        """Return the entries that are alive and valid; the list keeps no weakly held value alive."""
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            self._purge(now, evicted)
            entries = list(self._index.values())
        self._notify(evicted)
        return entries

    def _notify(self, evicted: list[dict[K, V]]) -> None:
        if self._hook is not None:
            for entries in evicted:
                self._hook.notify(entries)

    # The methods up to `_remove` are called with the lock held.

    def _find(self, key: K, now: float, evicted: list[dict[K, V]]) -> V | Missing:
        """Return the value that is valid now, and make it the one used last."""
        if self._dead:
            self._purge_dead(_DEAD_PER_CALL)
        entry = self._index.get(key)
        if entry is None:
            return MISSING
        if entry.expires_at <= now:
            self._expire(entry, evicted)
            return MISSING

        value = value_of(entry)
        if value is not MISSING:
            self._keep_strong(entry, value, evicted)
        return value

    def _store(self, entry: Entry[K, V], value: V, now: float, evicted: list[dict[K, V]]) -> object:
        """Put an entry in the place of the previous one; return what has to be released after the lock."""
        if self._dead:
            self._purge_dead(_DEAD_PER_CALL)
        self._expire_oldest(now, _EXPIRED_PER_WRITE, evicted)

        key = entry.key
        previous = self._index.pop(key, None)
        released = MISSING if previous is None else self._tier.remove(key, previous.size_bytes)
        self._index[key] = entry
        self._keep_strong(entry, value, evicted)
        return previous, released

    def _store_if_absent(self, entry: Entry[K, V], value: V, now: float, evicted: list[dict[K, V]]) -> tuple[V, object]:
        found = self._find(entry.key, now, evicted)
        if found is not MISSING:
            return found, None
        return value, self._store(entry, value, now, evicted)

    def _keep_strong(self, entry: Entry[K, V], value: V, evicted: list[dict[K, V]]) -> None:
        if self._settings.strong == 0:
            return
        entries = self._tier.add(entry.key, value, entry.size_bytes)
        if self._has_fast_path:
            self._hot = self._tier.young
        if entries:
            self._evict(entries)
            evicted.append(entries)

    def _evict(self, entries: dict[K, V]) -> None:
        """Count entries that left the strong tier; those that cannot be weakly referenced leave the index as well."""
        self._evictions += len(entries)
        if not self._has_strong_only:
            return
        for key in entries:
            if isinstance(self._index.get(key), StrongEntry):
                self._index.pop(key, None)

    def _purge_dead(self, limit: int = sys.maxsize) -> int:
        """Remove the entries of dead values; return how many were looked at."""
        dead, index = self._dead, self._index
        purged = 0
        while dead and purged < limit:
            purged += 1
            try:
                entry = dead.popleft()
                # Two steps without a call in between, so that no finaliser can set the key anew between them.
                if index[entry.key] is entry:
                    del index[entry.key]
            except (IndexError, KeyError):  # a finaliser emptied the queue, or the entry was removed before it died
                continue
        return purged

    def _purge(self, now: float, evicted: list[dict[K, V]]) -> None:
        """Remove all entries that are dead or expired."""
        self._purge_dead()
        self._expire_oldest(now, len(self._index), evicted)

    def _expire_oldest(self, now: float, limit: int, evicted: list[dict[K, V]]) -> int:
        """Remove up to `limit` expired entries, the oldest first; return how many were removed."""
        if self._settings.ttl_s is None:
            return 0
        for removed in range(limit):
            oldest = next(iter(self._index.values()), None)
            if oldest is None or oldest.expires_at > now:
                return removed
            self._expire(oldest, evicted)
        return limit

    def _expire(self, entry: Entry[K, V], evicted: list[dict[K, V]]) -> None:
        self._index.pop(entry.key, None)
        self._remove(entry, entry.expires_at, evicted)

    def _remove(self, entry: Entry[K, V], now: float, evicted: list[dict[K, V]]) -> V | Missing:
        """Remove an entry, which has left the index, from the strong tier; return its value if it is valid now."""
        value = value_of(entry)
        released = self._tier.remove(entry.key, entry.size_bytes)
        if entry.expires_at > now:
            return value

        self._expirations += 1
        if released is not MISSING:
            self._evictions += 1
            evicted.append({entry.key: released})
        return MISSING

    def _oldest_keys(self, count: int, *, is_old: bool) -> Iterator[list[K]]:
        """Yield the first `count` keys of one generation in slices; the caller releases each slice before the next."""
        for start in range(0, count, _LISTED):
            with self._lock:
                generation = self._tier.old if is_old else self._tier.young
                keys = list(islice(generation, min(_LISTED, count - start)))
            for first in range(0, len(keys), _SLICE):
                yield keys[first : first + _SLICE]

    def _purge_until(self, deadline: float) -> None:
        now = self._now()
        removed = _SLICE
        while removed == _SLICE and time.monotonic() < deadline:
            evicted: list[dict[K, V]] = []
            with self._lock:
                removed = max(self._purge_dead(_SLICE), self._expire_oldest(now, _SLICE, evicted))
            self._notify(evicted)

    def _release_slice(self, keys: list[K]) -> int:
        """Stop holding these keys strongly; return the bytes of the values that ended by it."""
        values: dict[K, V] = {}
        entries: list[Entry[K, V]] = []
        with self._lock:
            self._purge_dead(2 * _SLICE)  # of the slice before, or the next caller would have to purge them all
            for key in keys:
                entry = self._index.get(key)
                value = MISSING if entry is None else self._tier.remove(key, entry.size_bytes)
                if entry is not None and value is not MISSING:
                    entries.append(entry)
                    values[key] = value
            self._evict(values)
        value = MISSING

        self._notify([values])
        sizes = [self._size_of(entry, values[entry.key]) for entry in entries]
        values.clear()
        return sum(
            size_bytes
            for entry, size_bytes in zip(entries, sizes, strict=True)
            if isinstance(entry, StrongEntry) or entry() is None
        )

    def _size_of(self, entry: Entry[K, V], value: V) -> int:
        if self._settings.max_bytes is not None:
            return entry.size_bytes
        try:
            return max(measure(self._settings.sizeof, value), 0)
        except Exception:
            return 0  # the figure only informs; a `sizeof` that fails must not keep memory from being given back

    def _measure(self, value: V) -> int:
        sizeof = self._settings.sizeof
        size_bytes = measure(sizeof, value)
        if size_bytes >= 0:
            return size_bytes
        # What a size of 32 bits overflows to, as a rule. As a size it would make room for other values.
        _logger.error("sizeof", "sizeof %r returned %d for a value; the value is not held strongly", sizeof, size_bytes)
        return sys.maxsize
