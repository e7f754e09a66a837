"""The steps of a leak investigation in a running process.

Samples of the counters, counts of the heap, referrer walks for what grows. What is kept between the steps is small and
constant in number of blocks, so that the counters do not see it as a leak.
"""

import re
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Final

from memtools.analysis._growth_by_call import find_leftovers
from memtools.analysis._leak_kind import judge_leak
from memtools.heap import Census, HeapGrowth, WhyAlive, growth_between
from memtools.heap._census import count_in_slices
from memtools.heap._why_alive import answer_in_steps
from memtools.leaks._diagnosis import Diagnosis, make_diagnosis
from memtools.ledger import statistics
from memtools.readings import effective_limit, headroom
from memtools.readings._counters import Counters, take_counters


class StringTable(dict[int, str]):
    """Names of types by address; a class of its own, so that growth of it can be recognised and left out."""

    __slots__ = ()


class CompactCensus:
    """A count of the heap in a handful of blocks.

    A `Census` of a large program is some ten thousand small objects: three of them would look like a leak to the
    counters. Addresses and numbers go into arrays, names into one table for all counts.

    Args:
        count: the count.
        names: the table for the names of its types.
    """

    __slots__ = ("_at", "_containers", "_names", "_objects", "_types")

    def __init__(self, count: Census, names: StringTable) -> None:
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
        """Return the original count."""
        addresses, kinds, lengths = self._containers
        return Census(
            dict(zip(addresses, zip(kinds, lengths, strict=True), strict=True)),
            dict(zip(*self._types, strict=True)),
            dict(self._names),
            self._objects,
            self._at,
        )


_MAX_SAMPLES: Final = 2_048
_UNKNOWN: Final = -1
_GOLDEN: Final = 0.618034  # the golden ratio: its multiples modulo 1 are spread evenly


def jittered_intervals(mean_s: float) -> Iterator[float]:
    """Yield times to wait between two samples, about `mean_s` seconds, no two in a row equal.

    Memory that is freed in step with the samples, once a second for example, would look like a slow rise.
    """
    share = 0.0
    while True:
        share = (share + _GOLDEN) % 1.0
        yield mean_s * (0.5 + share)


class Samples:
    """Counters in order of time, at most 2,048, in a handful of arrays.

    When they are full, each two become one with the lower figure of both, since the verdict is about floors.
    """

    def __init__(self) -> None:
        self._at = array("d")
        self._figures = tuple(array("q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._at)

    def add(self, one: Counters) -> None:
        """Add the latest counters."""
        if len(self._at) >= _MAX_SAMPLES:
            self._downsample()
        self._at.append(one.at)
        known = (one.resident_bytes, one.blocks, one.malloc_bytes, one.traced_bytes)
        for figures, value in zip(self._figures, known, strict=True):
            figures.append(_UNKNOWN if value is None else value)

    def until(self, at: float) -> list[Counters]:
        """Return the counters that were taken before `at`, of `time.monotonic()`."""
        rows = zip(self._at, *self._figures, strict=False)  # another thread may be adding a row
        return [Counters(row[0], row[1], row[2], _known(row[3]), _known(row[4])) for row in rows if row[0] < at]

    def _downsample(self) -> None:
        self._at[:] = self._at[::2]
        for figures in self._figures:
            figures[:] = array("q", map(min, figures[::2], figures[1::2]))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value


_MIN_HEADROOM: Final = 0.05  # of the limit: a list of all objects takes 8 bytes per object
_KEPT_COUNTS: Final = 3
_MAX_ANSWERS: Final = 4
_WALK_TIMEOUT_S: Final = 3.0  # wall time for one referrer walk: a busy machine makes it wait
_SAME_LEAK_SHARE: Final = 0.5  # of the highest rate: a suspect with this rate may be the same leak
_EXPLAINING_SHARE: Final = (
    0.05  # of the rate of the fastest type: a container that grows more slowly does not explain it
)
_VARYING_PARTS: Final = re.compile(r"\[[^\]]*\]| at line [0-9]+|'[^']*'")


def time_fraction_left() -> float:
    """Return the share of the effective limit that this process may still allocate; 1 if unknown."""
    left, limit = headroom().value_bytes, effective_limit().value_bytes
    return left / limit if left is not None and limit else 1.0


class Investigation:
    """One investigation of this process, step by step.

    Args:
        read: returns the counters.
        left_fraction: returns the share of the limit that is left, 1 without a limit.

    Threads: one at a time. It keeps numbers and texts, never an object of the program.
    """

    def __init__(
        self,
        *,
        read: Callable[[], Counters] = take_counters,
        left_fraction: Callable[[], float] = time_fraction_left,
    ) -> None:
        self._read = read
        self._left_fraction = left_fraction
        self._samples = Samples()
        self._names = StringTable()
        self._counts: list[CompactCensus] = []
        self._answers: tuple[WhyAlive, ...] = ()
        self._note = ""

    def sample(self) -> None:
        """Read the counters: some 15 us.

        Raises:
            ReadingError: when resident memory cannot be read.
        """
        self._samples.add(self._read())

    def count(self) -> Iterator[None]:
        """Count the heap, yielding after each slice; nothing happens with less than 5 % of the limit left."""
        if not self._has_headroom():
            return
        for count in count_in_slices():
            if count is not None:
                self._counts = [*self._counts[1 - _KEPT_COUNTS :], CompactCensus(count, self._names)]
            del count
            yield

    def find_holders(self) -> Iterator[None]:
        """Find the holders of what grew from count to count, yielding after each walk over the heap."""
        if len(self._counts) < 2 or not self._has_headroom():
            return
        found: list[WhyAlive] = []
        for suspect in _suspects(growth_between(*(count.unpack() for count in self._counts))):
            for answer in answer_in_steps(suspect, timeout=_WALK_TIMEOUT_S):
                if answer is not None and _is_informative(answer, found):
                    found.append(answer)
                yield
            if len(found) >= _MAX_ANSWERS:
                break
        self._answers = (
            tuple(sorted(found, key=_sort_key(found))) or self._answers
        )  # an ending program may have dropped what it held: the earlier answers stay

    def diagnosis(self, *, until: float = inf, is_ending: bool = False) -> Diagnosis:
        """Return what was found.

        Args:
            until: samples from then on are left out, in seconds of `time.monotonic()`.
            is_ending: whether the program was ending at that time; see `judge_leak`.
        """
        verdict = judge_leak(self._samples.until(until), is_ending=is_ending)
        leftovers = find_leftovers(statistics().accounts) if verdict.is_leak else ()
        return make_diagnosis(verdict, self._answers, leftovers, self._note)

    def _has_headroom(self) -> bool:
        share = self._left_fraction()
        if share >= _MIN_HEADROOM:
            return True
        self._note = f"the heap was not examined: only {max(share, 0.0):.1%} of the limit is left"
        return False


def _suspects(grown: Sequence[HeapGrowth]) -> list[HeapGrowth]:
    # Containers come first; types that grow too slowly to be the same leak come later.
    own = ("memtools.leaks.", "memtools.heap.")
    return [one for one in grown if not one.type_name.startswith(own)][: 3 * _MAX_ANSWERS]


def _is_informative(answer: WhyAlive, found: Sequence[WhyAlive]) -> bool:
    if not answer.paths or not answer.paths[0].holders:
        return False
    path = answer.paths[0]
    if path.is_rooted and path.holders[-1].startswith(("memtools.", "class memtools.")):
        return False  # a registry of memtools, which grows along
    return not (_is_type(answer) and any(_root(answer) == _root(other) for other in found))


def _sort_key(found: Sequence[WhyAlive]) -> Callable[[WhyAlive], tuple[bool, bool, bool]]:
    # Objects of a type come with a container, several for each item. Containers of the standard library that grow along
    # (the map of a selector) follow from what the program holds.
    fastest = max((_rate(answer) for answer in found if not _is_type(answer)), default=0.0)
    minimum = max(_SAME_LEAK_SHARE * fastest, _EXPLAINING_SHARE * max(map(_rate, found), default=0.0))
    return lambda answer: (_rate(answer) < minimum, _is_type(answer), not _is_held_by_program(answer))


def _is_type(answer: WhyAlive) -> bool:
    return answer.growth is not None and not answer.growth.address


def _rate(answer: WhyAlive) -> float:
    return answer.growth.per_second if answer.growth is not None else 0.0


def _is_held_by_program(answer: WhyAlive) -> bool:
    path = answer.paths[0]
    names = [holder.removeprefix("class ").partition(".")[0] for holder in path.holders]
    return path.is_rooted and any(name not in sys.stdlib_module_names or name == "__main__" for name in names[-2:])


def _root(answer: WhyAlive) -> str:
    return _VARYING_PARTS.sub("[]", answer.paths[0].holders[-1])
