"""Chains of objects of which each holds the one before it: a linked list, contexts that hold earlier ones, closures.

A walk over referrers takes one pass over the heap for each link. A chain of thousands is followed in two passes: the
first notes which object of the chain's types holds which, the second finds what holds any link from outside.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, Final

from memtools.heap._inspect import OwnDict, OwnList, all_objects, is_own_frame, real_type, skip_modules

MAX_LINKS: Final = 400_000  # objects of the chain's types; some 50 MB while they are followed
_MAX_PERIOD: Final = 4  # objects in a link: an instance and its dict; a function, its closure and a cell
_MIN_REPEATS: Final = 2  # of the period, and never fewer than four objects
_OBJECTS_PER_SLICE: Final = 5_000  # each is looked at in Python: some 5 ms
_OBJECTS_PER_SEARCH: Final = 25_000
_MAX_HOLDERS: Final = 40


class Chain:
    """A chain that was followed from a link to an object that holds its far end.

    Attributes:
        start: the link from which it was followed.
        holder: what holds the last link; no link itself.
        period: how many objects make a link.
    """

    __slots__ = ("_last", "_reached_from", "holder", "period", "start")

    def __init__(self, start: object, reached_from: dict[int, Any], last: object, holder: object, period: int) -> None:
        self.start = start
        self.holder = holder
        self.period = period
        self._reached_from = reached_from
        self._last = last

    def links(self) -> list[object]:
        """Return the objects between `start` and `holder`, in this order; empty if there is none."""
        found: list[object] = []
        link = self._last
        while link is not self.start:
            found.append(link)
            link = self._reached_from[id(link)]
        found.reverse()
        return found


def period_of(way_back: Sequence[object]) -> tuple[type, ...]:
    """Return the types of the objects that repeat at the beginning of a sequence, empty if none do.

    Args:
        way_back: a link, the object it holds, the object that this one holds, and so on.
    """
    types = list(map(real_type, way_back))
    for period in range(1, _MAX_PERIOD + 1):
        compared = max(_MIN_REPEATS * period, 4)
        if len(types) >= compared + period and all(types[at] is types[at + period] for at in range(compared)):
            return tuple(types[:period])
    return ()


class ChainSearch:
    """One search for what holds the far end of a chain.

    Args:
        starts: the links from which it is followed, each in turn.
        types: the types of the objects that make a link.
        is_root: whether an object is a root, behind which nothing is looked for.
        is_known: whether the object of an address was walked before, and is no part of the rest of the chain.

    Attributes:
        chains: what was found, after `run()`.
        is_cut: whether a chain has more links than are followed.
    """

    def __init__(
        self,
        starts: Sequence[object],
        types: Sequence[type],
        *,
        is_root: Callable[[object], bool],
        is_known: Callable[[int], bool],
    ) -> None:
        self.chains: list[Chain] = []
        self.is_cut = False
        self._starts = OwnList(starts)
        self._period = len(types)
        self._types = set(map(id, types))
        self._is_root = is_root
        self._is_known = is_known
        self._holders = OwnDict()  # by the address of a link: the first object of the chain's types that holds it
        self._more_holders = OwnDict()  # and a list of the others

    def run(self, own: set[int]) -> Iterator[None]:
        """Follow the chain, yielding after each slice of the heap; the result is in `chains`.

        Args:
            own: the addresses of objects of the caller that refer to links.
        """
        own = {*own, id(self.__dict__), id(self.chains)}
        yield from self._note_holders(own)
        ways = OwnList()
        for start in self._starts:
            ways.append(self._follow(start))
            yield
        self._holders.clear()
        self._more_holders.clear()
        yield from self._find_outside(ways, own)

    def _note_holders(self, own: set[int]) -> Iterator[None]:
        objects = self._only_links(all_objects())
        yield
        while objects:
            part = objects[-_OBJECTS_PER_SLICE:]
            del objects[-_OBJECTS_PER_SLICE:]
            for holder in part:
                if id(holder) not in own:
                    for link in self._only_links(gc.get_referents(holder)):
                        self._note(link, holder)
            del part
            if len(self._holders) >= MAX_LINKS:
                self.is_cut = True
                return
            yield

    def _only_links(self, objects: list[Any]) -> list[Any]:
        return list(compress(objects, map(self._types.__contains__, map(id, map(type, objects)))))

    def _note(self, link: object, holder: object) -> None:
        if self._holders.setdefault(id(link), holder) is not holder:
            more = self._more_holders.setdefault(id(link), OwnList())
            if len(more) < _MAX_HOLDERS:
                more.append(holder)

    def _follow(self, start: object) -> dict[int, Any]:
        # Breadth first, so that of several ways to a link the shortest is kept.
        reached_from: dict[int, Any] = OwnDict({id(start): None})
        level = [start]
        while level:
            following: list[Any] = []
            for link in level:
                for holder in self._holders_of(link):
                    if id(holder) in reached_from or self._is_known(id(holder)):
                        continue
                    if self._is_root(holder):
                        self._record(start, reached_from, link, holder)
                        continue
                    reached_from[id(holder)] = link
                    following.append(holder)
            level = following
        return reached_from

    def _holders_of(self, link: object) -> tuple[Any, ...]:
        if id(link) not in self._holders:
            return ()
        return self._holders[id(link)], *self._more_holders.get(id(link), ())

    def _find_outside(self, ways: list[dict[int, Any]], own: set[int]) -> Iterator[None]:
        links = {address for way in ways for address in way}
        objects = all_objects()
        while objects and len(self.chains) < _MAX_HOLDERS:
            part = list(skip_modules(objects[-_OBJECTS_PER_SEARCH:]))
            del objects[-_OBJECTS_PER_SEARCH:]
            types = map(id, map(type, part))
            skipped = {*self._types, id(OwnDict), id(OwnList), id(Chain)}
            self._search([held for held, cls in zip(part, types, strict=True) if cls not in skipped], links, ways, own)
            del part
            yield

    def _search(self, candidates: list[Any], links: set[int], ways: list[dict[int, Any]], own: set[int]) -> None:
        # One call for all candidates: only where it returns a link are they looked at by halves.
        found = [held for held in gc.get_referents(*candidates) if id(held) in links]
        if not found:
            return
        if len(candidates) > 1:
            middle = len(candidates) // 2
            self._search(candidates[:middle], links, ways, own)
            self._search(candidates[middle:], links, ways, own)
            return
        holder = candidates[0]
        if id(holder) in own or is_own_frame(holder):
            return
        for start, way in zip(self._starts, ways, strict=True):
            link = next((held for held in found if id(held) in way), None)
            if link is not None:
                self._record(start, way, link, holder)

    def _record(self, start: object, way: dict[int, Any], link: object, holder: object) -> None:
        self.chains.append(Chain(start, way, link, holder, self._period))
