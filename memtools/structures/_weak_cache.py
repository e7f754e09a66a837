"""A cache that never keeps the last reference, except to the few values used last.

Covers: the mapping, copies, statistics.
Leaves to others: making what is missing (`_factories`), giving memory back
(`_shrink`), the index, the strong tier, death
and age (`_store`).
"""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from copy import deepcopy
from functools import partial
from typing import NoReturn, Self, SupportsIndex, TypeVar, cast, overload

from memtools._forks import register_object_after_fork
from memtools.cleanup import register
from memtools.errors import NotPicklable
from memtools.structures._cache_store import (
    CacheSettings,
    CacheStatistics,
    CacheStore,
    Entry,
    HeldEntry,
    ShrinkingStore,
    read_settings,
    value_of,
)
from memtools.structures._single_flight import MISSING, Missing, Pending, TaskFlight, ThreadFlight

# Make what is missing, once for all who miss it at the same time.
#
# Covers: `get_or_create` for threads, `aget_or_create` for tasks, what is kept of a run and what is not.
# Leaves to others: the runs (`_flights`, `_tasks`), who may join one
# (`_pending`), the mapping (`_weak_cache`).

K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F")


class FactoryStore(CacheStore[K, V]):
    """A store that makes what it does not have."""

    __slots__ = ()

    def get_or_create(self, key: K, factory: Callable[[], V], /) -> V:
        """Return the value of `key`; if there is none, make it with `factory()` and keep it.

        Threads that miss the same key at the same time share one run, in the thread that came first. If the run fails,
        all of them get its exception and nothing is kept; a run that is broken off by something that is not an
        `Exception` (`KeyboardInterrupt`) leaves the next thread to try. A value that was set in the meantime is
        returned in place of the new one. If the key was removed in the meantime (`del`, `pop`, `clear`) those who wait
        get the new value, but it is not kept.

        Tasks do not share runs with threads, nor with the tasks of other event loops: at worst each loop makes one
        value, and the first is kept and handed to all.

        Raises:
            RecursiveFactory: if the factory asks for its own key, or for one that waits for it.
            NotWeakReferenceable: if the new value may not be kept here.
        """
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value

        while True:
            found = self._ask_or_join(key, factory)
            if found is not MISSING:
                return found

    async def aget_or_create(self, key: K, factory: Callable[[], Awaitable[V]], /) -> V:
        """Return the value of `key`; if there is none, make it with `await factory()` and keep it.

        As `get_or_create`, for the tasks of one asyncio loop. The factory runs in a task of its own, in a copy of the
        context of the task that came first. A task that is cancelled while it waits takes nobody along, not even if it
        came first; when the last one is cancelled, so is the factory.

        Raises:
            RecursiveFactory: if the factory asks for its own key, or for one that waits for it. A task that the
                factory starts, and waits for, is not seen through.
            NotWeakReferenceable: if the new value may not be kept here.
        """
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value

        found = self._ask(key)
        if found is not MISSING:
            return found
        return await self._flight_of(key, factory).join(key)

    def _ask_or_join(self, key: K, factory: Callable[[], V]) -> V | Missing:
        now = self._now()
        gone: list[dict[K, V]] = []
        with self._lock:
            found = self._find(key, now, gone)
            if found is MISSING:
                self._misses += 1
                flight = self._pending.by_threads.get(key)
                leads = flight is None
                if flight is None:
                    flight = self._pending.by_threads[key] = ThreadFlight()
                else:
                    flight.is_awaited = True
            else:
                self._hits += 1
                flight, leads = None, False
        self._tell(gone)

        if flight is None:
            return found
        try:
            return self._lead(key, factory, flight) if leads else flight.wait(key)
        finally:
            del flight  # a failure's traceback holds this frame

    def _lead(self, key: K, factory: Callable[[], V], flight: ThreadFlight[V]) -> V:
        table = self._pending.by_threads
        try:
            value = self._keep_unless_removed(key, factory(), table, flight)
        except BaseException as error:
            # First nobody can join any more, then those who wait are told: a failure is not for those who come later.
            self._end(key, table, flight)
            flight.fail(error)
            raise
        else:
            self._end(key, table, flight)
            flight.land(value)
            return value
        finally:
            del flight  # a failure's traceback holds this frame, and the flight may hold the failure

    def _flight_of(self, key: K, factory: Callable[[], Awaitable[V]]) -> TaskFlight[V]:
        loop = asyncio.get_running_loop()
        with self._lock:
            table = self._pending.of_loop(loop)
            running = table.get(key)
            if running is not None:
                return running
            flight: TaskFlight[V] = TaskFlight(loop, partial(self._end, key, table))
            table[key] = flight

        try:
            flight.start(partial(self._make, key, factory, table, flight))
        except BaseException:
            self._end(key, table, flight)
            raise
        return flight

    async def _make(
        self, key: K, factory: Callable[[], Awaitable[V]], table: Mapping[K, object], flight: TaskFlight[V]
    ) -> V:
        return self._keep_unless_removed(key, await factory(), table, flight)

    def _keep_unless_removed(self, key: K, value: V, table: Mapping[K, object], flight: object) -> V:
        """Keep what a flight made, or return what was set meanwhile; a flight whose key was removed keeps nothing."""
        entry = self._new_entry(key, value)
        now = self._now()
        gone: list[dict[K, V]] = []
        former: object = None
        with self._lock:
            if table.get(key) is flight:
                value, former = self._store_if_absent(entry, value, now, gone)
        self._tell(gone)
        del former
        return value

    def _end(self, key: K, table: MutableMapping[K, F], flight: F) -> None:
        with self._lock:
            if table.get(key) is flight:
                del table[key]


# What `values()` and `items()` return: views whose walk is over a snapshot, and keeps nothing alive.
#
# Leaves to others: keys, for which the view of `collections.abc` will do (`_weak_cache`).
#
# The views of `collections.abc` look every key up again, which fails when the value has died on the way, counts as a hit
# and makes the entry young.


class CacheValues(ValuesView[V]):
    """The values of a cache."""

    __slots__ = ("_snapshot",)

    def __init__(self, cache: Mapping[K, V], snapshot: Callable[[], list[Entry[K, V]]]) -> None:
        super().__init__(cache)
        self._snapshot = snapshot

    def __contains__(self, value: object) -> bool:
        return any(other is value or other == value for other in self)

    def __iter__(self) -> Iterator[V]:
        for entry in self._snapshot():
            value = value_of(entry)
            if value is not MISSING:
                yield value
            del value  # or it would live until the next step


class CacheItems(ItemsView[K, V]):
    """The keys of a cache with their values."""

    __slots__ = ("_peek", "_snapshot")

    def __init__(
        self, cache: Mapping[K, V], snapshot: Callable[[], list[Entry[K, V]]], peek: Callable[[K], V | Missing]
    ) -> None:
        super().__init__(cache)
        self._snapshot = snapshot
        self._peek = peek

    def __contains__(self, item: tuple[object, object]) -> bool:  # type: ignore[override]  # as typeshed's own view
        key, value = item
        found = self._peek(key)  # type: ignore[arg-type]  # any object may be asked for
        return found is not MISSING and (found is value or found == value)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for entry in self._snapshot():
            value = value_of(entry)
            if value is not MISSING:
                yield entry.key, value
            del value


D = TypeVar("D")


class WeakCache(FactoryStore[K, V], ShrinkingStore[K, V], MutableMapping[K, V]):
    """A mapping that holds its values weakly, and the last used ones strongly for a while.

    An entry is found as long as anybody holds its value, or it is among the last used: the last `strong // 2` at
    least and the last `strong` at most. `strong=0` never holds anything. A value that cannot be weakly referenced (an
    int, str, tuple, dict, list, None) lives only as long as it is among the last used.

    Example:
        >>> cache = WeakCache(strong=100)
        >>> report = cache.get_or_create("2024-05", lambda: {"total": 12})
        >>> cache["2024-05"] is report
        True

    Threads: every method may be called from any thread, and from a finaliser. A hit in the young half takes no lock
    (but does on builds without the GIL). `on_evict`, factories and finalisers of values run outside the lock;
    `__eq__` and `__hash__` of keys inside.

    Fork: the child has the entries and new locks; it starts empty if another thread was in the middle of a change.

    Cost: a hit in the young half is that of `weakref.WeakValueDictionary.get`. Any other hit is dearer: four to five
    times that with `strong=0`, twelve to fifteen (0.7 us) from the old half, from the weak tier, or with a ttl.

    Args:
        strong: most entries that are held strongly.
        ttl: how long an entry is valid after it was set, in seconds; a hit does not prolong it. None for ever.
        max_bytes: most bytes that are held strongly, by the shallow size that a value had when it was set, as a
            number or as text (`"64 MiB"`). A value that is larger by itself is not held strongly. None for any.
        on_evict: called as `on_evict(key, value)` for each entry that the strong tier lets go by itself: for want of
            room, by age, or to give memory back. Not for what you replace or remove. The entry may still be found
            while others hold its value. A failure is logged, at most once a minute, and counted.
        weak_only: refuse values that cannot be weakly referenced (`NotWeakReferenceable`). `strong=0` refuses them too.
        sizeof: gives the bytes of a value; called when a value is set if `max_bytes` is given, else only by `shrink`.
        shrinkable: have the cache asked to shrink when memory runs short (`memtools.cleanup`).
        clock: gives the time in seconds for `ttl`.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self,
        *,
        strong: int = 128,
        ttl: float | None = None,
        max_bytes: int | str | None = None,
        on_evict: Callable[[K, V], object] | None = None,
        weak_only: bool = False,
        sizeof: Callable[[V], int] = sys.getsizeof,
        shrinkable: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open(
            read_settings(
                strong=strong,
                ttl=ttl,
                max_bytes=max_bytes,
                on_evict=on_evict,
                weak_only=weak_only,
                sizeof=sizeof,
                shrinkable=shrinkable,
                clock=clock,
            )
        )

    def _open(self, settings: CacheSettings[K, V]) -> None:
        self._begin(settings)
        register_object_after_fork(self, type(self)._renew_after_fork)
        if settings.shrinkable:
            register(self)

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    @overload
    def get(self, key: K, default: D, /) -> V | D: ...
    def get(self, key: K, default: object = None, /) -> object:
        """Return the value of `key`, or `default`."""
        # The hot path: anything more is paid by every hit. Not `dict.get` with a sentinel, which is slower on a hit.
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value
        found = self._ask(key)
        return default if found is MISSING else found

    def __getitem__(self, key: K) -> V:
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value
        found = self._ask(key)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: K, value: V) -> None:
        self._put(self._new_entry(key, value), value)

    def __delitem__(self, key: K) -> None:
        if self._take(key) is MISSING:
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Whether `key` would be found; nothing is counted and nothing becomes young."""
        return key in self._hot or self._peek(key) is not MISSING  # type: ignore[arg-type]  # any object may be asked for

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[K]:
        for entry in self._snapshot():
            if value_of(entry) is not MISSING:
                yield entry.key

    def values(self) -> CacheValues[V]:
        """Return a view of the values; each walk is over a snapshot and leaves out what dies on the way."""
        return CacheValues(self, self._snapshot)

    def items(self) -> CacheItems[K, V]:
        """Return a view of the keys with their values, as `values` does."""
        return CacheItems(self, self._snapshot, self._peek)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V) -> V: ...
    @overload
    def pop(self, key: K, /, default: D) -> V | D: ...
    def pop(self, key: K, /, default: object = MISSING) -> object:
        """Remove `key` and return its value, or `default`.

        Raises:
            KeyError: if there is no value and no default.
        """
        value = self._take(key)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove the entry that was set last and return its key and value.

        Raises:
            KeyError: if there is none.
        """
        taken = self._take_last()
        if taken is not None:
            return taken
        raise KeyError("popitem(): the cache is empty")

    @overload
    def setdefault(self: "WeakCache[K, D | None]", key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: object = None, /) -> object:
        """Return the value of `key`; if there is none, keep and return `default`. No other thread comes in between."""
        found = self._ask(key)
        if found is not MISSING:
            return found
        value = cast("V", default)  # the overloads see to it
        return self._put_if_absent(self._new_entry(key, value), value)

    def clear(self) -> None:
        """Remove all entries, without telling `on_evict`; what is being made now is not kept either."""
        with self._lock:
            former = self._index, self._tier
            self._pending.forget_all()
            self._reset()
        del former  # here, not under the lock

    def copy(self) -> Self:
        """Return a cache with the same settings and the entries of this one, which are as new there."""
        twin = self._twin()
        twin.update(self.items())
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # As `weakref.WeakValueDictionary`: copies of the values would die at once, for nobody holds them.
        twin = self._twin()
        for key, value in self.items():
            twin[deepcopy(key, memo)] = value
        return twin

    def __or__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(cast("object", other), Mapping):
            return NotImplemented
        union = self.copy()
        union.update(other)
        return union

    def __ror__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(cast("object", other), Mapping):
            return NotImplemented
        union = self._twin()
        union.update(other)
        union.update(self.items())
        return union

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Self:
        self.update(other)
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise NotPicklable(type(self).__qualname__)

    def __repr__(self) -> str:
        # No lock and no clearing away: a debugger must be able to show a cache that is at work.
        strong, most, entries = len(self._tier), self._settings.strong, len(self._index)
        return f"<{type(self).__name__} entries={entries} strong={strong}/{most} hits={self._hits} at {id(self):#x}>"

    def statistics(self) -> CacheStatistics:
        """Return how the cache fared and what is in it; what is dead or too old is removed before it is counted."""
        entries = self._count()
        with self._lock:
            tier = self._tier
            held = [self._index.get(key) for generation in (tier.young, tier.old) for key in generation]
            return CacheStatistics(
                hits=self._hits,
                misses=self._misses,
                strong=len(tier),
                weak=max(entries - len(tier), 0),
                strong_only=sum(isinstance(entry, HeldEntry) for entry in held),
                strong_bytes=None if self._settings.max_bytes is None else tier.size_bytes,
                evictions=self._evictions,
                expirations=self._expirations,
                in_progress=len(self._pending),
                hook_failures=self._hook.failures,
            )

    def _renew_after_fork(self) -> None:
        was_free = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._pending = Pending()
        self._hook.forget_other_threads()
        if not was_free:
            # Another thread, which is not in the child, was in the middle of a change: a cache may always be empty.
            self._reset()

    def _twin(self) -> Self:
        twin = type(self).__new__(type(self))
        twin._open(self._settings)
        return twin
