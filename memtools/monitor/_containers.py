"""Find the containers that hold the most, and what they are called in the program.

Covers: plain lists, dicts, sets and deques that the collector knows, and what is registered to shrink; the module, the
class or the object that holds them; the line where they are made. Leaves to others: what to do about them (`_advice`).

Cost: walks all objects of the collector, some 50 ms for each million: for a report, not for a beat.
"""

import gc
import linecache
import re
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from time import monotonic
from types import ModuleType
from typing import Any, Final

from memtools.cleanup import registered
from memtools.records import record
from memtools.structures import BoundedList, WeakCache

_PLAIN: Final = (list, dict, set, deque)
_LEAST_ITEMS: Final = 1000
_WEIGHED: Final = 200  # items that stand for all
_MOST_REFERRERS: Final = 50
_NAMING_S: Final = 2.0  # then the rest goes without names: each takes two walks over all objects
_CHUNK: Final = 10_000  # objects whose referents are listed at once


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
    structures: list[Any] = [thing for thing in registered() if isinstance(thing, (BoundedList, WeakCache))]
    plain = sorted(_plain(), key=len, reverse=True)[: 8 * most]
    found = {id(thing): thing for thing in structures + plain if not _is_ours(thing)}
    del structures, plain  # or they would be among the holders
    weighed = sorted(((_weight(thing), key) for key, thing in found.items()), reverse=True)
    deadline = monotonic() + _NAMING_S
    return tuple(_described(found[key], weight, deadline) for weight, key in weighed[:most] if weight)


def _plain() -> Iterator[Any]:
    objects = gc.get_objects()
    yield from (thing for thing in objects if type(thing) in _PLAIN and len(thing) >= _LEAST_ITEMS)
    # A dict of numbers and texts is not tracked by the collector, and is only found in what holds it. Modules are not
    # asked: in CPython 3.12 that of _asyncio shows its free list, and dead objects that are touched die twice (a loop
    # without end in the next collection). Their names are in a dict that is asked.
    objects = [thing for thing in objects if not isinstance(thing, ModuleType)]
    for start in range(0, len(objects), _CHUNK):
        for thing in gc.get_referents(*objects[start : start + _CHUNK]):
            if type(thing) is dict and len(_any(thing)) >= _LEAST_ITEMS and not gc.is_tracked(thing):
                yield thing


def _is_ours(thing: Any) -> bool:
    # Interpreter tables: loaded modules, interned names, the caches of linecache and re.
    return thing is sys.modules or thing is linecache.cache


def _weight(thing: Any) -> int:
    try:
        if isinstance(thing, WeakCache):
            statistics: Any = thing.statistics()
            return int(statistics.strong_bytes or 0)
        sample = _first(thing)
        items = sum(map(sys.getsizeof, sample))
        if isinstance(thing, dict):
            items += sum(map(sys.getsizeof, _any(islice(_values(thing), _WEIGHED))))
        return sys.getsizeof(_any(thing)) + (items * len(_any(thing)) // len(sample) if sample else 0)
    except Exception:  # changed by another thread meanwhile, or an item that cannot say its size
        return 0


def _first(thing: Any) -> list[Any]:
    return list(islice(thing, _WEIGHED))


def _values(thing: Any) -> Any:
    return thing.values()


def _any(thing: Any) -> Any:
    # Any: a container of anything, once `isinstance` has made a container of unknowns of it.
    return thing


def _described(thing: Any, weight: int, deadline: float) -> Container:
    try:
        name, place = _name_and_place(thing) if monotonic() < deadline else ("", "")
    except Exception:  # an object of the program that cannot be asked for its attributes
        name, place = "", ""
    kind = type(thing).__name__
    bound = ""
    if isinstance(thing, BoundedList):
        bounded = _any(thing)
        bound = f"maxlen={bounded.maxlen}, keep={bounded.keep}" if bounded.maxlen else f"max_bytes={bounded.max_bytes}"
    elif isinstance(thing, WeakCache):
        bound = "strong="
    elif isinstance(thing, deque) and thing.maxlen is not None:
        bound = f"maxlen={thing.maxlen}"
    return Container(name or f"a {kind}", kind, len(_any(thing)), weight, place, bool(bound), bound)


def _name_and_place(thing: Any) -> tuple[str, str]:
    for module in list(sys.modules.values()):
        found = _key_of(thing, getattr(module, "__dict__", {}))
        if found is not None:
            return f"{module.__name__}.{found}", _line_of(module, rf"^{re.escape(found)}\s*[:=]")

    holders = _referrers(thing)
    # The attributes of an object may be a dict (always, before 3.12), and then their owner is one step further. One
    # question for all of them: each walks all objects of the process.
    namings: list[Any] = [holder for holder in holders if type(holder) is dict and _key_of(thing, holder) is not None]
    owners = [holder for holder in holders if type(holder) is not dict]
    for owner in owners + (_referrers(*namings) if namings else []):
        attribute = _key_of(thing, _attributes(owner))
        if attribute is not None:
            return _owned(owner, attribute)
    return "", ""


def _owned(owner: Any, attribute: str) -> tuple[str, str]:
    kind = owner if isinstance(owner, type) else type(owner)
    module = sys.modules.get(kind.__module__)
    pattern = rf"^\s+(self\.|cls\.)?{re.escape(attribute)}\s*[:=]"
    place = _line_of(module, pattern, after=rf"^\s*class {kind.__name__}\b") if module is not None else ""
    return f"{kind.__module__}.{kind.__qualname__}.{attribute}", place


def _referrers(*things: Any) -> list[Any]:
    # A snapshot that holds its things; frames and the lists of this search are left out.
    found = gc.get_referrers(*things)[:_MOST_REFERRERS]
    return [one for one in found if type(one).__name__ not in ("frame", "list", "tuple", "list_iterator", "generator")]


def _attributes(owner: Any) -> Any:
    try:
        return _any(vars(owner))
    except TypeError:  # slots
        slots: list[str] = [
            name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)
        ]
        return {name: getattr(owner, name, None) for name in slots}


def _key_of(thing: Any, names: Any) -> str | None:
    for name, value in list(names.items()):
        if value is thing and isinstance(name, str):
            return name
    return None


def _line_of(module: ModuleType, pattern: str, *, after: str = "") -> str:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not path.endswith(".py"):
        return ""
    is_reached = not after
    for number, line in enumerate(linecache.getlines(path), 1):
        is_reached = is_reached or re.match(after, line) is not None
        if is_reached and re.match(pattern, line):
            return f"{path}:{number}"
    return ""
