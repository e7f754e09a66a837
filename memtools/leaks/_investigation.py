"""The steps of a leak investigation in a running process.

Samples of the counters, counts of the heap, referrer walks for what grows. What is kept between the steps is small and
constant in number of blocks, so that the counters do not see it as a leak.
"""

from array import array
from collections.abc import Callable, Collection, Iterator
from math import inf
from typing import Final

from memtools.analysis._growth_by_call import find_leftovers
from memtools.analysis._leak_kind import LeakKind, LeakVerdict, judge_leak
from memtools.heap import Census, WhyAlive, growth_between
from memtools.heap._census import count_in_slices
from memtools.heap._why_alive import answer_in_steps
from memtools.leaks._children import ChildSamples
from memtools.leaks._diagnosis import Diagnosis, make_diagnosis
from memtools.leaks._ranking import explain_in_bytes, is_informative, ranked, suspects
from memtools.leaks._samples import Samples
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

    __slots__ = ("_at", "_containers", "_large", "_names", "_objects", "_types")

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
        self._large = tuple(
            array("Q", column)
            for column in (
                count.large.keys(),
                (kind for kind, _ in count.large.values()),
                (size for _, size in count.large.values()),
            )
        )
        self._objects = count.objects
        self._at = count.at
        self._names = names
        names.update(count.names)

    def unpack(self) -> Census:
        """Return the original count."""
        addresses, kinds, lengths = self._containers
        large, types_of_large, sizes = self._large
        return Census(
            dict(zip(addresses, zip(kinds, lengths, strict=True), strict=True)),
            dict(zip(*self._types, strict=True)),
            dict(self._names),
            self._objects,
            self._at,
            dict(zip(large, zip(types_of_large, sizes, strict=True), strict=True)),
        )


_MIN_HEADROOM: Final = 0.05  # of the limit: a list of all objects takes 8 bytes per object
_KEPT_COUNTS: Final = 3
_MAX_GROWN: Final = 40  # of each kind: parts of what grows are faster than itself
_MAX_ANSWERS: Final = 6  # those that tell the same are left out later
_WALK_TIMEOUT_S: Final = 3.0  # wall time for one referrer walk: a busy machine makes it wait


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
        self._children = ChildSamples()
        self._names = StringTable()
        self._counts: list[CompactCensus] = []
        self._answers: tuple[WhyAlive, ...] = ()
        self._note = ""

    def sample(self) -> None:
        """Read the counters: some 15 us, and 20 us for each child process.

        Raises:
            ReadingError: when resident memory cannot be read.
        """
        counters = self._read()
        self._samples.add(counters)
        self._children.sample(counters.at)

    def count(self) -> Iterator[None]:
        """Count the heap, yielding after each slice; nothing happens with less than 5 % of the limit left."""
        self._children.look()
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
        grown = growth_between(*(count.unpack() for count in self._counts), limit=_MAX_GROWN)
        for suspect in suspects(grown):
            for answer in answer_in_steps(suspect, timeout=_WALK_TIMEOUT_S):
                if answer is not None and is_informative(answer, found):
                    found.append(answer)
                yield
            if len(found) >= _MAX_ANSWERS:
                break
        self._answers = tuple(found) or self._answers  # an ending program may have dropped what it held

    def diagnosis(self, *, until: float = inf, is_ending: bool = False, apart_from: Collection[int] = ()) -> Diagnosis:
        """Return what was found.

        Args:
            until: samples from then on are left out, in seconds of `time.monotonic()`.
            is_ending: whether the program was ending at that time; see `judge_leak`.
            apart_from: the ids of child processes that are left out.
        """
        verdict = judge_leak(self._samples.until(until), is_ending=is_ending)
        if verdict.is_leak and verdict.kind is not LeakKind.PYTHON and explain_in_bytes(self._answers, verdict):
            # A large buffer is one block, and few of them a second do not show in the number of blocks.
            reason = "objects of Python take ever more bytes"
            verdict = LeakVerdict(LeakKind.PYTHON, verdict.bytes_per_s, verdict.blocks_per_s, verdict.seconds, reason)
        leftovers = find_leftovers(statistics().accounts) if verdict.is_leak else ()
        children = self._children.processes(until=until, is_ending=is_ending, apart_from=apart_from)
        note = self._note
        if self._children.left_out:
            note = f"{note}; " * bool(note) + f"{self._children.left_out} more child processes were not looked at"
        return make_diagnosis(verdict, ranked(self._answers, verdict), leftovers, note, children)

    def _has_headroom(self) -> bool:
        share = self._left_fraction()
        if share >= _MIN_HEADROOM:
            return True
        self._note = f"the heap was not examined: only {max(share, 0.0):.1%} of the limit is left"
        return False
