"""Find out whether this process leaks, and who holds it, while it runs.

Covers: samples of the counters, counts of the heap, the climb for what grows, owners that have ended and still hold
memory; step by step, for whoever has the time.
Leaves to others: when each step is taken (`_investigate`, `_alongside`), the verdict (`memtools.analysis`), how the
answer reads (`_diagnosis`).
"""

import re
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Final

from memtools.analysis import find_leftovers, judge_leak
from memtools.heap import Census, HeapGrowth, WhyAlive, answer_in_steps, count_in_slices, growth_between
from memtools.leaks._diagnosis import Diagnosis, make_diagnosis
from memtools.ledger import statistics
from memtools.readings import Counters, effective_limit, headroom, take_counters

# Keep a count of the heap between two looks in a handful of blocks.
#
# A `Census` of a large program is some ten thousand small objects: keeping three of them would look like a leak to the
# counters that look on. Addresses and numbers go into arrays, names into one dict for all counts.


class Names(dict[int, str]):
    """Names of types by address; a type of its own, so that it is known for ours."""

    __slots__ = ()


class PackedCensus:
    """One count, packed.

    Args:
        count: the count.
        names: where the names of its types are remembered.
    """

    __slots__ = ("_at", "_containers", "_names", "_objects", "_types")

    def __init__(self, count: Census, names: Names) -> None:
        self._containers = tuple(
            array("Q", column)
            for column in (
                count.containers.keys(),
                (kind for kind, _ in count.containers.values()),
                (length for _, length in count.containers.values()),
            )
        )
        self._types = (array("Q", count.types.keys()), array("Q", count.types.values()))
        self._objects = count.objects
        self._at = count.at
        self._names = names
        names.update(count.names)

    def unpack(self) -> Census:
        """Return the count as it was."""
        addresses, kinds, lengths = self._containers
        return Census(
            dict(zip(addresses, zip(kinds, lengths, strict=True), strict=True)),
            dict(zip(*self._types, strict=True)),
            dict(self._names),
            self._objects,
            self._at,
        )


# Keep counters of any length of time in bounded room, without adding to what they count.
#
# Covers: arrays of numbers, a handful of blocks however long it goes on; thinned out to half when they are full.
# Leaves to others: reading (`memtools.readings`), judging (`memtools.analysis`).

_MOST: Final = 2_048
_UNKNOWN: Final = -1
_GOLDEN: Final = 0.618034  # multiples of it are spread the most evenly


def uneven(mean_s: float) -> Iterator[float]:
    """Yield times to wait between two samples, about `mean_s` seconds, no two in a row the same.

    What is given back in step with the samples, once a second, say, would look like a slow rise.
    """
    share = 0.0
    while True:
        share = (share + _GOLDEN) % 1.0
        yield mean_s * (0.5 + share)


class Samples:
    """Counters in order of time, at most 2,048 of them.

    When they are full, two become one that has the lower figure of both: floors are what is judged.
    """

    def __init__(self) -> None:
        self._at = array("d")
        self._figures = tuple(array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._at)

    def add(self, one: Counters) -> None:
        """Add the latest counters."""
        if len(self._at) >= _MOST:
            self._thin_out()
        self._at.append(one.at)
        known = (one.resident_bytes, one.blocks, one.malloc_bytes, one.traced_bytes)
        for figures, value in zip(self._figures, known, strict=True):
            figures.append(_UNKNOWN if value is None else value)

    def until(self, at: float) -> list[Counters]:
        """Return the counters that were taken before `at`, of `time.monotonic()`."""
        rows = zip(self._at, *self._figures, strict=False)  # another thread may be adding one
        return [Counters(row[0], row[1], row[2], _known(row[3]), _known(row[4])) for row in rows if row[0] < at]

    def _thin_out(self) -> None:
        self._at[:] = self._at[::2]
        for figures in self._figures:
            figures[:] = array("q", map(min, figures[::2], figures[1::2]))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value


_LEAST_HEADROOM: Final = 0.05  # of the limit: a list of all objects takes 8 bytes for each
_COUNTS: Final = 3  # that are kept
_MOST_CLIMBS: Final = 4
_CLIMB_S: Final = 3.0  # for one climb, on the wall: a busy machine makes it wait
_ALONG: Final = 0.5  # of the highest rate: what grows so fast may be the same leak
_BESIDE: Final = 0.05  # of the objects of the fastest type: a container that grows more slowly does not explain them
_PLACES: Final = re.compile(r"\[[^\]]*\]| at line [0-9]+|'[^']*'")


def share_left() -> float:
    """Return the share of the effective limit that this process may still take; 1 where nobody knows."""
    room, limit = headroom().value_bytes, effective_limit().value_bytes
    return room / limit if room is not None and limit else 1.0


class Investigation:
    """One investigation of this process, step by step.

    Args:
        read: returns the counters.
        room: returns the share of the limit that is left, 1 where there is no limit.

    Threads: one at a time. What it keeps are numbers and words, never an object of the program's.
    """

    def __init__(self, *, read: Callable[[], Counters] = take_counters, room: Callable[[], float] = share_left) -> None:
        self._read = read
        self._room = room
        self._samples = Samples()
        self._names = Names()
        self._counts: list[PackedCensus] = []
        self._answers: tuple[WhyAlive, ...] = ()
        self._note = ""

    def sample(self) -> None:
        """Read the counters: some 15 us.

        Raises:
            ReadingError: when the system does not say what is resident.
        """
        self._samples.add(self._read())

    def count(self) -> Iterator[None]:
        """Count the heap, with a word after each slice; not with less than 5 % of the limit left."""
        if not self._has_room():
            return
        for count in count_in_slices():
            if count is not None:
                self._counts = [*self._counts[1 - _COUNTS :], PackedCensus(count, self._names)]
            del count
            yield

    def climb(self) -> Iterator[None]:
        """Find who holds what grew from count to count, with a word after each walk over the heap."""
        if len(self._counts) < 2 or not self._has_room():
            return
        found: list[WhyAlive] = []
        for suspect in _suspects(growth_between(*(count.unpack() for count in self._counts))):
            for answer in answer_in_steps(suspect, timeout=_CLIMB_S):
                if answer is not None and _tells_something(answer, found):
                    found.append(answer)
                yield
            if len(found) >= _MOST_CLIMBS:
                break
        self._answers = (
            tuple(sorted(found, key=_order(found))) or self._answers
        )  # at its end a program may have dropped what it held

    def diagnosis(self, *, until: float = inf, is_ending: bool = False) -> Diagnosis:
        """Return what was found.

        Args:
            until: samples from then on are left out, in seconds of `time.monotonic()`.
            is_ending: whether the program was ending then; see `judge_leak`.
        """
        verdict = judge_leak(self._samples.until(until), is_ending=is_ending)
        leftovers = find_leftovers(statistics().accounts) if verdict.is_leak else ()
        return make_diagnosis(verdict, self._answers, leftovers, self._note)

    def _has_room(self) -> bool:
        share = self._room()
        if share >= _LEAST_HEADROOM:
            return True
        self._note = f"the heap was not looked at: {max(share, 0.0):.1%} of the limit left"
        return False


def _suspects(grown: Sequence[HeapGrowth]) -> list[HeapGrowth]:
    # Containers stand first; of the rest what grows too slowly to be the same leak is another one, and comes later.
    ours = ("memtools.leaks.", "memtools.heap.")
    return [one for one in grown if not one.type_name.startswith(ours)][: 3 * _MOST_CLIMBS]


def _tells_something(answer: WhyAlive, found: Sequence[WhyAlive]) -> bool:
    if not answer.paths or not answer.paths[0].holders:
        return False
    way = answer.paths[0]
    if way.is_rooted and way.holders[-1].startswith(("memtools.", "class memtools.")):
        return False  # our own books
    return not (_is_type(answer) and any(_root(answer) == _root(other) for other in found))


def _order(found: Sequence[WhyAlive]) -> Callable[[WhyAlive], tuple[bool, bool, bool]]:
    # Objects of a type come with a container, several for each item. What grows along with it in the standard library
    # (a selector's books, say) is the echo of what the program holds.
    fastest = max((_rate(answer) for answer in found if not _is_type(answer)), default=0.0)
    least = max(_ALONG * fastest, _BESIDE * max(map(_rate, found), default=0.0))
    return lambda answer: (_rate(answer) < least, _is_type(answer), not _is_of_the_program(answer))


def _is_type(answer: WhyAlive) -> bool:
    return answer.growth is not None and not answer.growth.address


def _rate(answer: WhyAlive) -> float:
    return answer.growth.per_second if answer.growth is not None else 0.0


def _is_of_the_program(answer: WhyAlive) -> bool:
    way = answer.paths[0]
    names = [holder.removeprefix("class ").partition(".")[0] for holder in way.holders]
    return way.is_rooted and any(name not in sys.stdlib_module_names or name == "__main__" for name in names[-2:])


def _root(answer: WhyAlive) -> str:
    return _PLACES.sub("[]", answer.paths[0].holders[-1])
