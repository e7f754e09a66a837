"""`WeakCache`: a mapping that holds values weakly, and the last used ones strongly."""

import sys
import threading
import time
from collections.abc import Awaitable, Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from copy import deepcopy
from functools import partial
from typing import Any, Final, Self, SupportsIndex, TypeVar, cast, overload

from memtools._forks import register_object_after_fork
from memtools._suggestions import suggest_arguments
from memtools.cleanup import register
from memtools.structures._cache_store import (
    CacheSettings,
    CacheStatistics,
    CacheStore,
    Entry,
    StrongEntry,
    parse_settings,
    value_of,
)
from memtools.structures._single_flight import MISSING, Missing, TaskCall, ThreadCall
from memtools.structures._subclass_state import added_state, restore_state

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

# The slots that a copy fills by itself: what is left of the state was added by a subclass.
OWN_SLOTS: Final = frozenset(CacheStore.__slots__)


class WeakCache(CacheStore[K, V], MutableMapping[K, V]):
    """A mapping that holds its values weakly, and the last used ones strongly.

    An entry is found as long as other code holds its value, or the value is among the last used: the last `strong // 2`
    at least and the last `strong` at most. With `strong=0` the cache never keeps a value alive. A value that cannot be
    weakly referenced (an int, str, tuple, dict, list, None) lives only as long as it is among the last used.

    Example:
        >>> cache = WeakCache(strong=100)
        >>> report = cache.get_or_create("2024-05", lambda: {"total": 12})
        >>> cache["2024-05"] is report
        True

    Threads: every method may be called from any thread, and from a finaliser. A hit in the young generation takes no
    lock (on builds without the GIL it does). `on_evict`, factories, `sizeof` and finalisers of values run outside the
    lock; `__eq__` and `__hash__` of keys run inside it.

    Fork: the child has the entries and new locks. It starts empty if another thread was changing the cache at that
    moment.

    Cost: a hit in the young generation costs what `weakref.WeakValueDictionary.get` costs. Any other hit costs four to
    five times as much with `strong=0`, and twelve to fifteen times (0.7 us) from the old generation, from the weak
    tier, or with a ttl.

    Args:
        strong: the maximum number of entries that are held strongly.
        ttl: how long an entry is valid after it was set, in seconds; a hit does not prolong it. None for no limit.
        max_bytes: the maximum of bytes that are held strongly, as a number or as text (`"64 MiB"`), by the shallow size
            that a value had when it was set. A value that is larger by itself is not held strongly. None for no limit.
        on_evict: called as `on_evict(key, value)` for each entry that leaves the strong tier for lack of space, by
            expiry, or when memory runs short; not for an entry that you replace or remove. The entry may still be found
            while other code holds its value. A failure is logged, at most once a minute, and counted.
        weak_only: refuse values that cannot be weakly referenced (`NotWeakReferenceable`). `strong=0` refuses them,
        too.
        sizeof: returns the bytes of a value; called when a value is set if `max_bytes` is given, else only by `shrink`.
            Setting a value raises `ConfigError` where the answer is no whole number.
        shrinkable: whether the cache is asked to shrink when memory runs short (`memtools.cleanup`).
        clock: returns monotonic seconds, for `ttl`.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    __slots__ = ("__weakref__",)

    @suggest_arguments(maxsize="strong", max_size="strong", maxlen="strong", capacity="strong", timeout="ttl")
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
        self._initialise(
            parse_settings(
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

    def _initialise(self, settings: CacheSettings[K, V]) -> None:
        self._set_up(settings)
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
        # The fast path: every hit pays for each line. `dict.get` with a sentinel would be slower.
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value
        found = self._lookup(key)
        return default if found is MISSING else found

    def __getitem__(self, key: K) -> V:
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value
        found = self._lookup(key)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: K, value: V) -> None:
        self._put(self._new_entry(key, value), value)

    def __delitem__(self, key: K) -> None:
        if self._pop(key) is MISSING:
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Return whether `key` would be found; nothing is counted and nothing becomes young."""
        return key in self._hot or self._peek(key) is not MISSING  # type: ignore[arg-type]  # any object may be asked for

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[K]:
        for entry in self._snapshot():
            if value_of(entry) is not MISSING:
                yield entry.key

    def get_or_create(self, key: K, factory: Callable[[], V], /) -> V:
        """Return the value of `key`; if there is none, make it with `factory()` and store it.

        Threads that miss the same key at the same time share one run of the factory, in the thread that came first. If
        the run fails, all of them get its exception and nothing is stored; if it ends with something that is not an
        `Exception` (`KeyboardInterrupt`), the next thread tries. A value that was set in the meantime is returned in
        place of the new one. If the key was removed in the meantime (`del`, `pop`, `clear`), the waiting threads get
        the new value, but it is not stored.

        Threads do not share a run with tasks, nor tasks with those of another event loop: each event loop may make a
        value of its own, and the one that is stored first is returned to all.

        Raises:
            RecursiveFactory: if the factory asks for its own key, or for one whose factory waits for it.
            NotWeakReferenceable: if the new value cannot be stored in this cache.
            Exception: what the factory raised.
        """
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value

        while True:
            found = self._lookup_or_run(key, factory)
            if found is not MISSING:
                return found

    async def aget_or_create(self, key: K, factory: Callable[[], Awaitable[V]], /) -> V:
        """Return the value of `key`; if there is none, make it with `await factory()` and store it.

        Like `get_or_create`, for the tasks of one asyncio event loop. The factory runs in a task of its own, in a copy
        of the context of the task that came first. Cancelling a waiting task does not affect the other tasks, even if
        it came first; when the last waiting task is cancelled, the factory is cancelled as well.

        Raises:
            RecursiveFactory: if the factory asks for its own key, or for one whose factory waits for it. A wait for a
                task that the factory starts itself is not detected.
            NotWeakReferenceable: if the new value cannot be stored in this cache.
            Exception: what the factory raised.
        """
        try:
            value = self._hot[key]
        except KeyError:
            pass
        else:
            self._hits += 1
            return value

        found = self._lookup(key)
        if found is not MISSING:
            return found
        create = partial(self._create, key, factory)
        return await self._calls.join_in_loop(key, create, name="WeakCache factory").wait(key)

    def values(self) -> "CacheValues[V]":
        """Return a view of the values; each iteration is over a snapshot and skips values that have died meanwhile."""
        return CacheValues(self, self._snapshot)

    def items(self) -> "CacheItems[K, V]":
        """Return a view of the keys with their values; see `values`."""
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
        value = self._pop(key)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove the entry that was set last and return its key and value.

        Raises:
            KeyError: if the cache is empty.
        """
        popped = self._popitem()
        if popped is not None:
            return popped
        raise KeyError("popitem(): the cache is empty")

    @overload
    def setdefault(self: "WeakCache[K, D | None]", key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: object = None, /) -> object:
        """Return the value of `key`; if there is none, store and return `default`. This is atomic."""
        found = self._lookup(key)
        if found is not MISSING:
            return found
        value = cast("V", default)  # by the overloads
        return self._put_if_absent(self._new_entry(key, value), value)

    def clear(self) -> None:
        """Remove all entries, without calling `on_evict`; a value that is being made now is not stored either."""
        with self._lock:
            previous = self._index, self._tier
            self._calls.forget_all()
            self._reset()
        del previous  # here, not under the lock

    def copy(self) -> Self:
        """Return a cache of the same class with the same settings, entries and attributes that a subclass has added.

        The ttl of each entry starts anew.
        """
        copied = self._empty_copy()
        copied.update(self.items())
        return copied

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # As in `weakref.WeakValueDictionary`: copies of the values would die at once, since no other code holds them.
        copied = self._blank_copy()
        memo[id(self)] = copied  # before the attributes, which may hold this cache
        restore_state(copied, deepcopy(self.__getstate__(), memo))
        for key, value in self.items():
            copied[deepcopy(key, memo)] = value
        return copied

    def __or__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(cast("object", other), Mapping):
            return NotImplemented
        union = self.copy()
        union.update(other)
        return union

    def __ror__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(cast("object", other), Mapping):
            return NotImplemented
        union = self._empty_copy()
        union.update(other)
        union.update(self.items())
        return union

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Self:
        self.update(other)
        return self

    def __getstate__(self) -> object:
        """Return the attributes that a subclass has added, as `object.__getstate__` does, without the cache's own."""
        return added_state(super().__getstate__(), OWN_SLOTS)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if type(self).__reduce__ is not object.__reduce__:
            return self.__reduce__()  # of a subclass that knows how to make its values anew
        raise TypeError(
            f"cannot pickle {type(self).__qualname__!r} object: it does not own its values; "
            "pickle dict(cache.items()) for a copy of them"
        )

    def __repr__(self) -> str:
        # No lock is taken and nothing is purged: a debugger must be able to show a cache in the middle of an operation.
        strong, limit, entries = len(self._tier), self._settings.strong, len(self._index)
        return f"<{type(self).__name__} entries={entries} strong={strong}/{limit} hits={self._hits} at {id(self):#x}>"

    def statistics(self) -> CacheStatistics:
        """Return what the cache did and what it holds; dead and expired entries are removed before they are counted."""
        entries = self._count()
        with self._lock:
            tier = self._tier
            entries_held = [self._index.get(key) for generation in (tier.young, tier.old) for key in generation]
            return CacheStatistics(
                hits=self._hits,
                misses=self._misses,
                strong=len(tier),
                weak=max(entries - len(tier), 0),
                strong_only=sum(isinstance(entry, StrongEntry) for entry in entries_held),
                strong_bytes=None if self._settings.max_bytes is None else tier.size_bytes,
                evictions=self._evictions,
                expirations=self._expirations,
                in_progress=len(self._calls),
                hook_failures=0 if self._hook is None else self._hook.failures,
            )

    def _renew_after_fork(self) -> None:
        was_free = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._calls.renew_after_fork(self._lock)
        if not was_free:
            # Another thread, which does not exist in the child, was in the middle of a change: start empty.
            self._reset()

    def _blank_copy(self) -> Self:
        # Without `__init__`, which may take other arguments in a subclass.
        copied = type(self).__new__(type(self))
        copied._initialise(self._settings)
        return copied

    def _empty_copy(self) -> Self:
        copied = self._blank_copy()
        restore_state(copied, self.__getstate__())
        return copied

    def _lookup_or_run(self, key: K, factory: Callable[[], V]) -> V | Missing:
        """Return the value; `MISSING` if the factory was interrupted in another thread, and has to be run again."""
        now = self._now()
        evicted: list[dict[K, V]] = []
        with self._lock:
            found = self._find(key, now, evicted)
            if found is MISSING:
                self._misses += 1
                call = self._calls.in_threads.get(key)
                runs_here = call is None
                if call is None:
                    call = self._calls.in_threads[key] = ThreadCall()
                else:
                    call.has_waiters = True
            else:
                self._hits += 1
                call, runs_here = None, False
        self._notify(evicted)

        if call is None:
            return found
        try:
            return self._run_factory(key, factory, call) if runs_here else call.wait(key)
        finally:
            del call  # the traceback of a failure holds this frame

    def _run_factory(self, key: K, factory: Callable[[], V], call: ThreadCall[V]) -> V:
        table = self._calls.in_threads
        try:
            value = self._store_unless_removed(key, factory(), table, call)
        except BaseException as error:
            # The call is discarded before the waiting threads wake up: a thread that comes later must not get this
            # error.
            self._calls.discard(key, table, call)
            call.set_exception(error)
            raise
        else:
            self._calls.discard(key, table, call)
            call.set_result(value)
            return value
        finally:
            del call  # the traceback of a failure holds this frame, and the call may hold the failure

    async def _create(
        self, key: K, factory: Callable[[], Awaitable[V]], table: Mapping[K, object], call: TaskCall[V]
    ) -> V:
        return self._store_unless_removed(key, await factory(), table, call)

    def _store_unless_removed(self, key: K, value: V, table: Mapping[K, object], call: object) -> V:
        """Store what a call made, unless its key was removed; return the value, or the one that was set meanwhile."""
        entry = self._new_entry(key, value)
        now = self._now()
        evicted: list[dict[K, V]] = []
        previous: object = None
        with self._lock:
            if table.get(key) is call:
                value, previous = self._store_if_absent(entry, value, now, evicted)
        self._notify(evicted)
        del previous
        return value


class CacheValues(ValuesView[V]):
    """The values of a cache.

    The view of `collections.abc` would look up every key again: that fails when the value has died meanwhile, counts as
    a hit, and makes the entry young.
    """

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
            del value  # or it would live until the next iteration


class CacheItems(ItemsView[K, V]):
    """The keys of a cache with their values; a class of its own for the reasons given in `CacheValues`."""

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
