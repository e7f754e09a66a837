"""Make what is missing, once for all who miss it at the same time.

Covers: `get_or_create` for threads, `aget_or_create` for tasks, what is kept of a run and what is not.
Leaves to others: the runs (`_flights`, `_tasks`), who may join one
(`_pending`), the mapping (`_weak_cache`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import TypeVar

from memtools.structures.caches._entries import MISSING, Missing
from memtools.structures.caches._flights import ThreadFlight
from memtools.structures.caches._store import CacheStore
from memtools.structures.caches._tasks import TaskFlight

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
            NotWeaklyReferable: if the new value may not be kept here.
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
            NotWeaklyReferable: if the new value may not be kept here.
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
