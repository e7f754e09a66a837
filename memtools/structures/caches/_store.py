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
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from memtools.structures.caches._entries import MISSING, Entry, HeldEntry, Missing, WeakEntry, value_of
from memtools.structures.caches._errors import NotWeaklyReferable
from memtools.structures.caches._hook import EvictionHook
from memtools.structures.caches._pending import Pending
from memtools.structures.caches._settings import CacheSettings
from memtools.structures.caches._tier import StrongTier

K = TypeVar("K")
V = TypeVar("V")

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
            NotWeaklyReferable: if `value` cannot be weakly referenced and this cache does nothing else.
            Exception: what `sizeof` or the clock raises.
        """
        settings = self._settings
        entry: Entry[K, V]
        try:
            entry = WeakEntry(value, self._bury)
        except TypeError:
            if settings.weak_only or settings.strong == 0:
                raise NotWeaklyReferable(type(value).__qualname__) from None
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
