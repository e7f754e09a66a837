"""Arguments that take one of something or several."""

from collections.abc import Iterable
from typing import cast


def listed(value: object) -> tuple[object, ...]:
    """Return `value` as a tuple: a text alone, what can be walked as what it holds, nothing for the rest."""
    if isinstance(value, str):
        return (value,)
    return tuple(cast("Iterable[object]", value)) if isinstance(value, Iterable) else ()
