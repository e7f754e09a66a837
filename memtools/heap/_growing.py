"""What grew between two counts of the heap.

Covers: containers first, by the rate of their growth; types of objects where no container explains them. Pure: numbers
in, numbers out.
Leaves to others: counting (`_census`), who keeps it (`_answers`).
"""

from collections.abc import Sequence
from typing import Final

from memtools.errors import ConfigError
from memtools.heap._census import Census, Growing

# What grows along with any container or instance, and tells nothing by itself.
_EVERYDAY: Final = frozenset(
    ("dict", "list", "tuple", "set", "frozenset", "cell", "function", "weakref.ReferenceType", "method",
     "builtin_function_or_method", "code", "generator", "coroutine", "collections.deque", "frame")
)  # fmt: skip
LEAST_GROWTH: Final = 16


def growing(*counts: Census, most: int = 10, least: int = LEAST_GROWTH) -> tuple[Growing, ...]:
    """Return what grew from each count to the next, the fastest containers first, then the fastest types.

    What was not there at the first count comes after what was.

    A container that became shorter in between is at work, and no leak.

    Args:
        counts: two or more, in the order in which they were taken; 10 to 30 s apart for a service.
        most: how many containers and how many types to return at most.
        least: how much more there must be; fewer than 16 is what any program does meanwhile.

    Raises:
        ConfigError: for fewer than two counts.
    """
    if len(counts) < 2:
        raise ConfigError("counts", len(counts), "two or more counts, as `census()` returns them")
    seconds = max(counts[-1].at - counts[0].at, 1e-9)
    return (*_containers(counts, seconds, least)[:most], *_types(counts, seconds, least)[:most])


def _containers(counts: Sequence[Census], seconds: float, least: int) -> list[Growing]:
    found: list[Growing] = []
    for address, (cls, after) in counts[-1].containers.items():
        lengths = _lengths(counts, address, cls)
        if lengths is None or after - lengths[0] < least or lengths != sorted(lengths):
            continue
        found.append(Growing(counts[-1].names[cls], lengths[0], after, (after - lengths[0]) / seconds, address))
    return sorted(found, key=_rate)


def _lengths(counts: Sequence[Census], address: int, cls: int) -> list[int] | None:
    lengths: list[int] = []
    for count in counts:
        kind, length = count.containers.get(address, (cls, 0))
        if kind != cls:
            return None  # another object had the address before
        lengths.append(length)
    return lengths


def _types(counts: Sequence[Census], seconds: float, least: int) -> list[Growing]:
    found: list[Growing] = []
    for cls, after in counts[-1].types.items():
        name = counts[-1].names[cls]
        if name in _EVERYDAY or name.startswith("memtools.heap."):
            continue
        numbers = [count.types.get(cls, 0) for count in counts]
        if after - numbers[0] >= least and numbers == sorted(numbers):
            found.append(Growing(name, numbers[0], after, (after - numbers[0]) / seconds))
    return sorted(found, key=_rate)


def _rate(one: Growing) -> tuple[bool, float]:
    # What was there before and grew says more than what has come since.
    return (not one.before, -one.per_second)
