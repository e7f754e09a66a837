"""Call again and again until it is clear whether something grows.

Covers: how many calls are made in each round, when enough is known, what was counted in between.
Leaves to others: making the calls (`_find_leaks`), the verdict (`memtools.analysis`), who holds it (`_culprits`).

The first rounds are short. Only where they do not look clean does it go on, each round twice as long as the one before:
what grows by the round, or until something is full, gets slower by the call, and a leak does not.
"""

import gc
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from memtools._records import record
from memtools.analysis import MIN_ROUNDS, GrowthVerdict, Round, Verdict, judge_growth_by_call
from memtools.ledger import Meter, Owner, choose_meter, native_reason
from memtools.readings import descriptors, malloc_bytes

# Collections that look only at what came since: cheap enough for each round of a leak test.
#
# Covers: freezing what is there, so that a full collection does not walk it, and thawing it at the end.
# Leaves to others: when to collect (`_hunt`).
#
# A full collection takes some 20 ms in a test run with its 150,000 objects, and seven of them are more than most tests
# take. What was there before is nobody's growth, and need not be walked: `gc.freeze` sets it aside in no time.


@contextmanager
def collect_young_only() -> Generator[None, None, None]:
    """Have collections inside the `with` leave alone what was there before.

    Somebody who has frozen objects himself would find them thawed: then nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# Which meter counts in tests: one that sees single bytes, wherever one can be had.


def default_test_meter(name: str | None = None) -> Meter:
    """Return the meter called `name`, else the one that `MEMTOOLS_METER` names, else native, else tracemalloc.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it cannot be had.
    """
    if name is None and not os.environ.get("MEMTOOLS_METER"):
        name = "tracemalloc" if native_reason() else "native"
    return choose_meter(name)


# What may grow with each call, and how it is read.
#
# Covers: bytes of the tested owner, allocated blocks, C memory, tasks, threads and descriptors.
# Leaves to others: when they are read (`_hunt`), what is made of the figures (`memtools.analysis`).


@record
class Metric:
    """One thing that may grow.

    Attributes:
        name: what grows, in the plural.
        tolerance: growth per call that is none.
        enough: growth after which nothing more is called: a test must not eat the machine to prove its point.
        read: returns how much there is now.
    """

    name: str
    tolerance: float
    stop_at: int
    read: Callable[[], int]

    def with_tolerance(self, tolerance: float) -> "Metric":
        """Return the same with another tolerance."""
        return Metric(self.name, tolerance, self.stop_at, self.read)


# An exact meter sees nothing but the tested function. What is kept for each hundredth call is still a leak.
BYTES_TOLERANCE: Final = 4.0
# Of the whole process: others come and go. One object a call is a block a call.
_BLOCKS_TOLERANCE: Final = 0.5
# C libraries keep buffers for later; below this nothing could be told from fragments of blocks of 4 KiB.
_NATIVE_TOLERANCE: Final = 256.0
# One of them kept for each hundredth call is a leak.
_COUNT_TOLERANCE: Final = 0.005

ENOUGH_BYTES: Final = 32 << 20
_BYTES_A_BLOCK: Final = 32  # the least that an object takes
_ENOUGH_TASKS: Final = 1_000
_ENOUGH_THREADS: Final = 60
_ENOUGH_DESCRIPTORS: Final = 120  # many systems allow 1,024


def metrics_of(owner: Owner, tolerance: float, enough_bytes: int = ENOUGH_BYTES) -> tuple[Metric, ...]:
    """Return what is watched while `owner` is charged, those first that tell the most.

    Args:
        owner: whose bytes are counted.
        tolerance: bytes per call that are no growth.
        enough_bytes: growth after which nothing more is called.
    """
    found = [
        Metric("bytes", tolerance, enough_bytes, _reader_of(owner)),
        Metric("blocks", _BLOCKS_TOLERANCE, enough_bytes // _BYTES_A_BLOCK, sys.getallocatedblocks),
        Metric("tasks", _COUNT_TOLERANCE, _ENOUGH_TASKS, lambda: len(task_names())),
        Metric("threads", _COUNT_TOLERANCE, _ENOUGH_THREADS, threading.active_count),
    ]
    if descriptors() is not None:
        found.append(Metric("descriptors", _COUNT_TOLERANCE, _ENOUGH_DESCRIPTORS, lambda: len(descriptors() or ())))
    if malloc_bytes() is not None:
        found.append(Metric("native bytes", _NATIVE_TOLERANCE, enough_bytes, lambda: malloc_bytes() or 0))
    return tuple(found)


def _reader_of(owner: Owner) -> Callable[[], int]:
    if owner.meter.name == "tracemalloc":
        return _MinimumMetric(owner).read
    return lambda: owner.live_bytes


class _MinimumMetric:
    """What grew for the owner and in the whole process, whichever is less.

    With the tracemalloc meter a collection gives what it frees back to nobody, and the owner seems to keep it; the process
    as a whole knows better, but takes its neighbours for the owner.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._before = self._both()
        self._grown = 0

    def read(self) -> int:
        now = self._both()
        self._grown += min(now[0] - self._before[0], now[1] - self._before[1])
        self._before = now
        return self._grown

    def _both(self) -> tuple[int, int]:
        import tracemalloc  # loaded by the meter that traces, not by whoever imports memtools

        return self._owner.live_bytes, tracemalloc.get_traced_memory()[0]


def task_names() -> list[str]:
    """Return the names of the tasks of the running loop that have not ended; empty without a loop."""
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if asyncio is None or loop is None:
        return []
    return [task.get_name() for task in asyncio.all_tasks(loop)]


def thread_names() -> list[str]:
    """Return the names of the threads that run."""
    return [thread.name for thread in threading.enumerate()]


_MAX_ROUNDS: Final = 40  # or twenty more than were asked for
_MIN_DOUBLINGS: Final = 3  # at least, before a leak is called one
# A function that is quick is called so often that a cache of some thousand entries is full by then.
_MANY_CALLS: Final = 20_000


@record
class SearchLimits:
    """How long a hunt goes on.

    Attributes:
        rounds: rounds before the first verdict.
        calls: calls in each of them.
        warmup: calls before anything is counted.
        min_duration: how long it goes on at least, once something grows, unless it has called 20,000 times.
        timeout: how long it goes on at most; what is not clear by then is inconclusive.
    """

    rounds: int
    calls: int
    warmup: int
    min_duration: float
    timeout: float


class LeakSearch:
    """One hunt.

    Args:
        signals: what is counted.
        pace: how long it goes on.
        on_progress: called after each round, and once before the first, how many are done, how many calls were made, and what
            the first signal reads.
    """

    def __init__(
        self,
        signals: Sequence[Metric],
        pace: SearchLimits,
        on_progress: Callable[[int, int, int], object] | None = None,
    ) -> None:
        self.calls = 0
        self.is_over_time = False
        self._metrics = tuple(signals)
        self._limits = pace
        self._on_progress = on_progress
        self._done = 0
        # Made before anything is counted: what a hunt itself needs must not grow from round to round.
        width = len(self._metrics)
        self._max_rounds = max(_MAX_ROUNDS, pace.rounds + _MAX_ROUNDS // 2)
        self._before = array("q", bytes(8 * width))
        self._grown = [array("q", bytes(8 * self._max_rounds)) for _ in self._metrics]
        self._lengths = array("q", bytes(8 * self._max_rounds))

    def call_counts(self) -> Iterator[int]:
        """Yield how many calls to make next; what they left is counted when the next number is asked for."""
        if self._limits.warmup:
            yield self._limits.warmup
        with collect_young_only():
            yield from self._count()

    def _count(self) -> Iterator[int]:
        begun = time.perf_counter()
        self._measure(0)
        calls = self._limits.calls
        for _ in range(self._limits.rounds):
            if self._exceeds(calls):
                return
            yield calls
            self._measure(calls)
        doublings = 0
        while self._must_continue(doublings, time.perf_counter() - begun) and not self._exceeds(calls):
            yield calls
            self._measure(calls)
            doublings += 1
            calls *= 2

    def _measure(self, calls: int) -> None:
        gc.collect()
        for place, signal in enumerate(self._metrics):
            now = signal.read()
            self._grown[place][self._done] = now - self._before[place]
            self._before[place] = now
        if calls:
            self._lengths[self._done] = calls
            self._done += 1
            self.calls += calls
        if self._on_progress is not None:
            self._on_progress(self._done, self.calls, self._before[0])

    def _must_continue(self, doublings: int, spent_s: float) -> bool:
        answers = {verdict.answer for _, verdict in self.verdicts()}
        if answers == {Verdict.CLEAN} or self._done >= self._max_rounds:
            return False
        if spent_s >= self._limits.timeout:
            self.is_over_time = True
            return False
        is_decided = Verdict.LEAK in answers and doublings >= _MIN_DOUBLINGS
        return not (is_decided and (spent_s >= self._limits.min_duration or self.calls >= _MANY_CALLS))

    def _exceeds(self, calls: int) -> bool:
        # Three rounds can tell a leak; from then on it is looked ahead, as each round is twice the one before.
        if self._done < MIN_ROUNDS:
            return False
        for signal, grown in zip(self._metrics, self._grown, strict=True):
            so_far = sum(grown[: self._done])
            if so_far + so_far * calls // self.calls > signal.stop_at:
                return True
        return False

    @property
    def is_clean(self) -> bool:
        """Whether no signal grows."""
        return all(verdict.answer is Verdict.CLEAN for _, verdict in self.verdicts())

    def verdicts(self) -> list[tuple[Metric, GrowthVerdict]]:
        """Return what each signal says so far."""
        found: list[tuple[Metric, GrowthVerdict]] = []
        for signal, grown in zip(self._metrics, self._grown, strict=True):
            rounds = [Round(self._lengths[place], grown[place]) for place in range(self._done)]
            found.append((signal, judge_growth_by_call(rounds, tolerance=signal.tolerance)))
        return found
