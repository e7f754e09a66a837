"""One entry of a cache: a weak reference that knows its key, or a box for a value that cannot be weakly referenced.

Leaves to others: where entries are kept and when they go (`_store`).

Both are called to get at the value. A `WeakEntry` is made by `ref` itself and gets its fields afterwards: a constructor
of our own would cost more than the rest of storing a value.
"""

from enum import Enum
from typing import Final, Generic, Literal, TypeAlias, TypeVar
from weakref import ref

K = TypeVar("K")
V = TypeVar("V")


class Absence(Enum):
    """The answer "nothing there" where None may be a value."""

    MISSING = "missing"


MISSING: Final = Absence.MISSING
Missing: TypeAlias = Literal[Absence.MISSING]


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
