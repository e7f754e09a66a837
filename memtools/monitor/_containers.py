"""Find the containers that hold the most, and what they are called in the program.

Covers: what each weighs, by a sample; whether it keeps to a bound. Leaves to others: finding and naming them
(`memtools.heap`), what to do about them (`_advice`).

Cost: walks all objects of the collector, some 0.3 s for each million, and two to four times more for the names, for two
seconds at most: for a report, not for a beat.
"""

from collections import deque
from typing import Any, Final

from memtools.cleanup import registered
from memtools.heap import Way, line_of, longest, ways_to, weigh
from memtools.records import record
from memtools.structures import BoundedList, WeakCache

_LEAST_ITEMS: Final = 1000
_NAMING_S: Final = 2.0  # then the rest goes without names


@record
class Container:
    """A container, and where the program holds it.

    Attributes:
        name: `module.name`, `module.Class.name`, or its kind where nobody with a name holds it.
        kind: the name of its class.
        items: how many it holds.
        held_bytes: its own size and that of its items, from a sample of them, shallow.
        place: `file:line` where it is made, empty where that cannot be found.
        is_bounded: whether it keeps to a bound by itself.
        bound: the bound in words, empty where there is none.
    """

    name: str
    kind: str
    items: int
    held_bytes: int
    place: str
    is_bounded: bool
    bound: str


def largest_containers(most: int = 5) -> tuple[Container, ...]:
    """Return the containers with at least 1,000 items that hold the most, by a sample of their items."""
    found: list[Any] = [thing for thing in registered() if isinstance(thing, (BoundedList, WeakCache))]
    bounded = set(map(id, found))
    found += [thing for thing in longest(4 * most, least=_LEAST_ITEMS) if id(thing) not in bounded]
    weights = {id(thing): _weight(thing) for thing in found}
    heaviest = sorted((one for one in found if weights[id(one)]), key=lambda one: weights[id(one)], reverse=True)[:most]
    found.clear()  # or it would be among the holders
    ways = ways_to(heaviest, budget_s=_NAMING_S)
    return tuple(_described(thing, weights[id(thing)], way) for thing, way in zip(heaviest, ways, strict=True))


def _weight(thing: Any) -> int:
    if isinstance(thing, WeakCache):
        statistics: Any = thing.statistics()
        return int(statistics.strong_bytes or 0)
    return weigh(thing)


def _described(thing: Any, weight: int, way: Way) -> Container:
    holder = _nearest_name(way)
    kind = type(thing).__name__
    bound = _bound_of(thing)
    return Container(holder or f"a {kind}", kind, len(thing), weight, line_of(holder), bool(bound), bound)


def _nearest_name(way: Way) -> str:
    # What is in a list of a dict is known by the first holder that has a name.
    named = (holder.removeprefix("class ") for holder in way.holders if "." in holder and "[" not in holder)
    return next(named, "")


def _bound_of(thing: Any) -> str:
    if isinstance(thing, BoundedList):
        bounded: Any = thing  # pyright: ignore[reportUnknownVariableType]  # a list of anything
        return f"maxlen={bounded.maxlen}, keep={bounded.keep}" if bounded.maxlen else f"max_bytes={bounded.max_bytes}"
    if isinstance(thing, WeakCache):
        return "strong="
    return f"maxlen={thing.maxlen}" if type(thing) is deque and thing.maxlen is not None else ""
