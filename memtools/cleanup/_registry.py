"""Who can give memory back when it runs short.

Covers: the weak register of living things that have a `shrink` method.
Leaves to others: in which order they are asked and for how long (`_trim`), when (`memtools.monitor`), what shrinking
means (the thing itself).

Threads: every function is safe from any thread, in finalisers and after a fork, as there is no lock: each step on the
set of references is one C call. A lock here would deadlock itself, for a finaliser may run in the middle of any line.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable
from weakref import getweakrefs, ref

from memtools._safe_calls import CircuitBreaker
from memtools.errors import ConfigError
from memtools.readings import Level

# How one registered thing fared when it was asked to shrink.
#
# Leaves to others: asking (`_trim`), keeping it for as long as the thing lives (`_register`).


class Past:
    """What is remembered of one thing.

    Attributes:
        breaker: leaves it out after failing five times in a row.
        gained_bytes: what it gave back when it was last asked.
        size_bytes: its shallow size when it was last asked.
        failures: how often its `shrink` raised.
        overruns: how often it returned late.
    """

    __slots__ = ("breaker", "failures", "gained_bytes", "overruns", "size_bytes")

    def __init__(self) -> None:
        self.breaker = CircuitBreaker()
        self.gained_bytes = 0
        self.size_bytes = 0
        self.failures = 0
        self.overruns = 0


class Shrinkable(Protocol):
    """Something that can give memory back when it runs short.

    It may also have an attribute `is_shrinking`: True after a `shrink` that had to stop at its deadline, so that it is
    asked again in the next slice. Without one, a thing that gave something back and returned at its deadline is.
    """

    def shrink(self, level: Level, deadline: float, /) -> int:
        """Give memory back.

        Args:
            level: how short memory is; more may go at `CRITICAL` than at `WARNING`.
            deadline: when to return, in seconds of `time.monotonic()`, done or not.

        Returns:
            The bytes given back, as far as they are known.
        """
        ...


class Place(ref[Shrinkable]):
    """One thing's place in the register; hashes by itself, as the thing may be unhashable or equal to another.

    Attributes:
        past: how the thing fared when it was asked; None where it never was. It ends with the place.
    """

    __slots__ = ("past",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    past: Past | None

    def is_taken(self) -> bool:
        """Whether the thing is still on the register; it may be dead all the same."""
        return self in _places


_places: set[Place] = set()

# The callback of a weak reference runs in whatever code dropped the last reference. A C method takes no lock there and
# runs no Python code; `discard` does not mind a place that has already been given up.
_give_up: Callable[[Place], None] = _places.discard


def register(thing: Shrinkable) -> None:
    """Have `thing` asked to shrink when memory runs short, for as long as it lives.

    The register holds it weakly and by identity. A second call does nothing.

    Raises:
        ConfigError: if `thing` has no `shrink` to call, or cannot be weakly referenced.
    """
    if not callable(getattr(thing, "shrink", None)):
        raise ConfigError("thing", thing, "an object with a method shrink(level, deadline) -> bytes given back")
    if _places_of(thing):
        return

    try:
        place = Place(thing, _give_up)
    except TypeError:
        accepted = "an object that can be weakly referenced (with slots: name `__weakref__` among them)"
        raise ConfigError("thing", thing, accepted) from None
    place.past = None
    _places.add(place)


def unregister(thing: Shrinkable) -> None:
    """Ask `thing` no more; nothing happens where it was not registered."""
    for place in _places_of(thing):
        _places.discard(place)


def registered() -> tuple[Shrinkable, ...]:
    """Return the registered things that are alive now, each once, in no order.

    It is a snapshot: things may come and go while it is walked. It keeps its things alive, so do not hold on to it.
    """
    # `set.copy` is one C call. Walking the set itself would fail if a thing died on the way.
    alive = [thing for place in _places.copy() if (thing := place()) is not None]
    # Two threads that register one thing at the same moment may take two places.
    return tuple({id(thing): thing for thing in alive}.values())


def places() -> list[Place]:
    """Return the places as they are now, of the living and of those about to die."""
    return list(_places.copy())


def _places_of(thing: object) -> list[Place]:
    # The thing itself knows its references; asking them needs no table of ids, which are reused after death.
    return [place for place in getweakrefs(thing) if type(place) is Place and place in _places]


# In which order registered things are asked: the largest first, those that gave nothing last.
#
# Leaves to others: asking them (`_trim`).
#
# How large a thing is, nobody knows but itself. What stands for it is its shallow size or what it gave back last time,
# whichever is more: `sys.getsizeof` of a list counts its places, and a thing may count more by its own `__sizeof__`.

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


# What the ladder is made of: a step, and a step that can be interrupted.
#
# Leaves to others: the steps of the house (`_trim`, `_collect`, `_trim_heap`), taking them (`_ladder`).


class Step(Protocol):
    """Something that gives memory back when it is called."""

    @property
    def name(self) -> str:
        """What it is called in events, logs and statistics."""
        ...

    @property
    def least(self) -> Level:
        """The lowest level at which it is taken."""
        ...

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Give memory back.

        Args:
            level: how short memory is.
            deadline: when to return, in seconds of `time.monotonic()`, done or not.

        Returns:
            The bytes that are known to have been given back.
        """
        ...


@runtime_checkable
class SlicedStep(Step, Protocol):
    """A step that lets others have their turn: the ladder walks its slices instead of calling it."""

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Give memory back in slices of a few milliseconds each.

        Args:
            level: how short memory is.
            left: returns the seconds that may still be spent; to be asked before each slice. The turns that others
                have between two slices do not count.

        Yields:
            The bytes that each slice is known to have given back. To yield nothing at all means that there was nothing
            to do, and the step counts as not taken.
        """
        ...


def known_bytes(answer: object) -> int:
    """Return what a step or a thing said it gave back, in bytes; 0 where it said what it never promised to."""
    return max(answer, 0) if isinstance(answer, int) else 0
