"""What a `BoundedList` was told to stay within: checked once, then shared and never changed.

Leaves to others: keeping to it (`_window`, `_weighed`), telling of what went (`_eviction`).
"""

from collections.abc import Callable
from typing import Any

from memtools.errors import ConfigError
from memtools.records import record
from memtools.units import parse_count, parse_size

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the price of importing inspect

# Items may be of any type; the list that owns these two has the type to offer.
Sizeof = Callable[[Any], int]
OnEvict = Callable[[list[Any]], object]


@record
class ListBounds:
    """The bounds of one list and of its copies.

    Attributes:
        maxlen: the most items, or None where bytes alone decide.
        keep: how many items an overflow leaves; None where `maxlen` is None.
        max_bytes: the most bytes of items, by shallow size, or None.
        sizeof: gives the shallow size of an item, in bytes.
        on_evict: called with the items that had to go, or None.
        shrinkable: whether the list is on the register of things that can give memory back.
    """

    maxlen: int | None
    keep: int | None
    max_bytes: int | None
    sizeof: Sizeof
    on_evict: OnEvict | None
    shrinkable: bool

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle may go to another process, where the hook has no meaning, and its object no business.
        return ListBounds, (self.maxlen, self.keep, self.max_bytes, self.sizeof, None, self.shrinkable)


def parse_bounds(
    maxlen: int | None,
    keep: int | None,
    max_bytes: int | str | None,
    sizeof: Sizeof,
    on_evict: OnEvict | None,
    shrinkable: object,
) -> ListBounds:
    """Return the bounds that these arguments mean.

    Raises:
        ConfigError: for anything that makes no sense; see `BoundedList`.
    """
    if maxlen is None and max_bytes is None:
        raise ConfigError("maxlen", None, "a whole number of at least 0; None only beside max_bytes")
    if not callable(sizeof):
        raise ConfigError("sizeof", sizeof, "a function that takes an item and returns its size in bytes")
    _check_hook(on_evict)
    if not isinstance(shrinkable, bool):
        raise ConfigError("shrinkable", shrinkable, "True or False")

    most = None if maxlen is None else parse_count(maxlen, name="maxlen", least=0)
    size = None if max_bytes is None else parse_size(max_bytes, name="max_bytes")
    return ListBounds(most, _parse_keep(keep, most), size, sizeof, on_evict, shrinkable)


def _parse_keep(keep: int | None, maxlen: int | None) -> int | None:
    if keep is None:
        return maxlen
    if maxlen is None:
        raise ConfigError("keep", keep, "None where maxlen is None: bytes alone decide then")
    if parse_count(keep, name="keep", least=0) > maxlen:
        raise ConfigError("keep", keep, f"a whole number from 0 to maxlen, {maxlen}")
    return keep


def _check_hook(on_evict: OnEvict | None) -> None:
    if on_evict is None:
        return
    if not callable(on_evict):
        raise ConfigError("on_evict", on_evict, "a function that takes a list of items, or None")
    code = getattr(on_evict, "__code__", None)
    if getattr(code, "co_flags", 0) & _CO_COROUTINE:
        raise ConfigError("on_evict", on_evict, "a plain function: nobody would await a coroutine here")
