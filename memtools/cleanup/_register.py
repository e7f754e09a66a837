"""Who can give memory back when it runs short.

Covers: the weak register of living things that have a `shrink` method.
Leaves to others: in which order they are asked and for how long (`_trim`), when (`memtools.monitor`), what shrinking
means (the thing itself).

Threads: every function is safe from any thread, in finalisers and after a fork, as there is no lock: each step on the
set of references is one C call. A lock here would deadlock itself, for a finaliser may run in the middle of any line.
"""

from collections.abc import Callable
from typing import Protocol
from weakref import getweakrefs, ref

from memtools.cleanup._past import Past
from memtools.errors import ConfigError
from memtools.readings import Level


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
