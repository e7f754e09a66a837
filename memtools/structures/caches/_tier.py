"""Keep what was used last alive, in two generations.

Covers: who is held strongly, who goes when there is no room.
Leaves to others: what becomes of those who go, locking, telling the user (`_store`).

An entry enters the young generation. When that is full it becomes the old one as a whole, and what was still in the
old one goes. Whoever is used again is young again. So at least the half used last is always there, and a use of what
is young changes nothing: no order has to be kept, and so no lock has to be taken.

Threads: the caller holds a lock, a re-entrant one. A finaliser may run wherever memory is allocated and use the same
tier in the middle of a method, so the generations change places in one statement that calls and allocates nothing.
"""

from typing import Generic, TypeVar

from memtools.structures.caches._entries import MISSING, Missing

K = TypeVar("K")
V = TypeVar("V")


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
