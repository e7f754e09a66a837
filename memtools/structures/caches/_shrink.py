"""Give memory back when it runs short.

Covers: letting the strong tier go in slices, and an honest figure of what that gave back.
Leaves to others: when it is time (`memtools.monitor`), who is asked (`memtools.cleanup`).
"""

import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeVar

from memtools.readings import Level
from memtools.structures.caches._entries import MISSING, Entry, HeldEntry
from memtools.structures.caches._store import CacheStore

K = TypeVar("K")
V = TypeVar("V")

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
