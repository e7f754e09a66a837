"""In which order registered things are asked: the largest first, those that gave nothing last.

Leaves to others: asking them (`_trim`).

How large a thing is, nobody knows but itself. What stands for it is its shallow size or what it gave back last time,
whichever is more: `sys.getsizeof` of a list counts its places, and a thing may count more by its own `__sizeof__`.
"""

import sys
from collections.abc import Iterator

from memtools.cleanup._past import Past
from memtools.cleanup._register import Place, places

_AT_ONCE = 1000  # places that are looked at between two looks at the clock: half a millisecond


def in_order() -> Iterator[Place | None]:
    """Yield the registered places, the largest first (to a factor of two); None now and then, to look at the clock.

    They are those at the moment of the first call. Sorting 100,000 of them would take longer than a slice may.
    """
    by_magnitude: dict[int, list[Place]] = {}
    for count, place in enumerate(places(), 1):
        by_magnitude.setdefault(_magnitude(place), []).append(place)
        if count % _AT_ONCE == 0:
            yield None

    for magnitude in sorted(by_magnitude, reverse=True):
        yield from by_magnitude[magnitude]


def size_of(thing: object) -> int:
    """Return the shallow size of `thing` in bytes; 0 where it cannot say."""
    try:
        return sys.getsizeof(thing)
    except Exception:
        return 0


def _magnitude(place: Place) -> int:
    thing = place()
    if thing is None:
        return 0
    return _expected_bytes(size_of(thing), place.past).bit_length()


def _expected_bytes(size_bytes: int, past: Past | None) -> int:
    if past is None:
        return size_bytes
    # What gave nothing may have grown since.
    if not past.gained_bytes and size_bytes < 2 * past.size_bytes:
        return 0
    return max(size_bytes, past.gained_bytes)
