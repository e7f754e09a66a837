"""What a cache was asked to be, checked once.

Leaves to others: what each choice does (`_store`).
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from memtools.errors import ConfigError
from memtools.records import record
from memtools.units import parse_count, parse_seconds, parse_size

K = TypeVar("K")
V = TypeVar("V")


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
        strong=parse_count(strong, name="strong", least=0),
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
