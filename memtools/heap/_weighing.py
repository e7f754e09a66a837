"""What a container and its items weigh: its own size, and that of its items by a sample of them, shallow.

No method of a stranger is called: what is no built-in object counts with the size that its class gives each.
"""

import sys
from itertools import chain, islice
from typing import Any, Final

from memtools.heap._looking import ITERATORS, REVERSED, class_of, is_one_of, kind_of, length_of, newest_items

_SAMPLE: Final = 200  # items that stand for all
_BUILT_IN: Final = (
    str, bytes, int, float, complex, bool, list, dict, set, tuple, frozenset, bytearray, type(None)
)  # fmt: skip
_basic_size_of: Final[Any] = type.__dict__["__basicsize__"].__get__


def weigh(container: object) -> int:
    """Return the bytes of a container and its items, the newest of them standing for all; 0 for what is none."""
    kind = kind_of(class_of(container))
    if kind is None:
        return 0
    try:
        if kind is dict:
            sample = list(islice(newest_items(container), _SAMPLE))  # type: ignore[arg-type]  # it is a dict
            items = sum(map(_size, chain.from_iterable(sample)))
        else:
            sample = list(islice((ITERATORS.get(kind) or REVERSED[kind])(container), _SAMPLE))
            items = sum(map(_size, sample))
    except RuntimeError:
        return 0  # another thread changed it
    return _size_of_itself(container, kind) + (items * length_of(container) // len(sample) if sample else 0)


def _size(thing: object) -> int:
    cls = class_of(thing)
    return sys.getsizeof(thing) if is_one_of(cls, _BUILT_IN) else int(_basic_size_of(cls))


def _size_of_itself(container: Any, kind: type[Any]) -> int:
    return int(vars(kind)["__sizeof__"](container))
