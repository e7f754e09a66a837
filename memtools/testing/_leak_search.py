"""Rounds of calls with measurements in between, until it is clear whether something grows.

The first rounds are short. Only if they do not look clean, further rounds follow, each twice as long as the one before:
what grows per round, or until a cache is full, gets slower per call, and a leak does not.
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
from memtools.analysis import GrowthVerdict, Verdict
from memtools.analysis._growth_by_call import MIN_ROUNDS, Round, judge_growth_by_call
from memtools.errors import ConfigError
from memtools.ledger import Meter, Owner, choose_meter, native_reason
from memtools.readings._counters import descriptors, malloc_bytes


@contextmanager
def collect_young_only() -> Generator[None, None, None]:
    """Make collections inside the `with` skip the objects that existed before.

    A full collection takes some 20 ms in a test run with 150,000 objects, and seven of them take longer than most
    tests. Objects that existed before cannot be growth: `gc.freeze` excludes them at no cost. If the program has frozen
    objects itself, nothing is done, because `gc.unfreeze` would unfreeze those, too.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def default_test_meter(name: str | None = None) -> Meter:
    """Return the meter called `name`, else that of `MEMTOOLS_METER`, else native, else tracemalloc.

    Tests need a meter that counts single bytes, so `"rss"` is never chosen by default.

    Raises:
        ConfigError: for an unknown name, and for `"native"` where it is not available.
    """
    if name is None and not os.environ.get("MEMTOOLS_METER"):
        name = "tracemalloc" if native_reason() else "native"
    return choose_meter(name)


@record
class Metric:
    """A figure that may grow with each call.

    Attributes:
        name: what is counted, in the plural.
        tolerance: growth per call that counts as none.
        enough: growth after which the calls stop, so that a test cannot use up the machine's memory.
        read: returns the present figure.
    """

    name: str
    tolerance: float
    stop_at: int
    read: Callable[[], int]

    def with_tolerance(self, tolerance: float) -> "Metric":
        """Return a copy with another tolerance."""
        return Metric(self.name, tolerance, self.stop_at, self.read)


# An exact meter counts only the tested function. A block kept for each hundredth call is still a leak.
BYTES_TOLERANCE: Final = 4.0
# A figure of the whole process, which fluctuates. One object kept per call is one block per call.
_BLOCKS_TOLERANCE: Final = 0.5
# C libraries keep buffers for later use; a smaller rise cannot be told from fragments of 4 KiB blocks.
_NATIVE_TOLERANCE: Final = 256.0
# One task, thread or descriptor kept for each hundredth call is a leak.
_COUNT_TOLERANCE: Final = 0.005

ENOUGH_BYTES: Final = 32 << 20
_BYTES_PER_BLOCK: Final = 32  # of the smallest object
_ENOUGH_TASKS: Final = 1_000
_ENOUGH_THREADS: Final = 60
_ENOUGH_DESCRIPTORS: Final = 120  # many systems allow 1,024


def metrics_of(owner: Owner, tolerance: float, enough_bytes: int = ENOUGH_BYTES) -> tuple[Metric, ...]:
    """Return the metrics of a search while `owner` is charged, the most telling first.

    Args:
        owner: its bytes are counted.
        tolerance: bytes per call that count as no growth.
        enough_bytes: growth in bytes after which the calls stop.
    """
    found = [
        Metric("bytes", tolerance, enough_bytes, _reader_of(owner)),
        Metric("blocks", _BLOCKS_TOLERANCE, enough_bytes // _BYTES_PER_BLOCK, sys.getallocatedblocks),
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
    """The growth of the owner or of the whole process, whichever is smaller.

    With the tracemalloc meter, memory that a garbage collection frees is credited to no owner, so that the owner seems
    to keep it. The total of the process is right about that, but includes other threads and tasks.
    """

    def __init__(self, owner: Owner) -> None:
        import tracemalloc  # as below

        if not tracemalloc.is_tracing():
            accepted = "requires `python -X tracemalloc`, since other threads run on this free-threaded build"
            raise ConfigError("meter", "tracemalloc", accepted)
        self._owner = owner
        self._before = self._both()
        self._grown = 0

    def read(self) -> int:
        now = self._both()
        self._grown += min(now[0] - self._before[0], now[1] - self._before[1])
        self._before = now
        return self._grown

    def _both(self) -> tuple[int, int]:
        import tracemalloc  # loads pickle: only with the meter that needs it

        return self._owner.live_bytes, tracemalloc.get_traced_memory()[0]


def task_names() -> list[str]:
    """Return the names of the unfinished tasks of the running loop; empty without a loop."""
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if asyncio is None or loop is None:
        return []
    return [task.get_name() for task in asyncio.all_tasks(loop)]


def thread_names() -> list[str]:
    """Return the names of the running threads."""
    return [thread.name for thread in threading.enumerate()]


_MAX_ROUNDS: Final = 40  # or twenty more than requested
_MIN_DOUBLINGS: Final = 3  # before the verdict "leak" is final
# Enough calls of a fast function to fill a cache of some thousand entries.
_MANY_CALLS: Final = 20_000


@record
class SearchLimits:
    """The limits of a leak search.

    Attributes:
        rounds: rounds before the first verdict.
        calls: calls per round.
        warmup: calls before the first measurement.
        min_duration: seconds that the search goes on at least once something grows, unless 20,000 calls were made.
        timeout: seconds after which no further round begins; an unclear result is inconclusive then.
    """

    rounds: int
    calls: int
    warmup: int
    min_duration: float
    timeout: float


class LeakSearch:
    """One search for growth over rounds of calls.

    Args:
        metrics: what is counted.
        limits: when the search ends.
        on_progress: called after each round, and once before the first, with the rounds done, the calls made and the
            figure of the first metric.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        limits: SearchLimits,
        on_progress: Callable[[int, int, int], object] | None = None,
    ) -> None:
        self.calls = 0
        self.is_over_time = False
        self._metrics = tuple(metrics)
        self._limits = limits
        self._on_progress = on_progress
        self._done = 0
        # Allocated before the first measurement: the memory of the search itself must not grow from round to round.
        width = len(self._metrics)
        self._max_rounds = max(_MAX_ROUNDS, limits.rounds + _MAX_ROUNDS // 2)
        self._before = array("q", bytes(8 * width))
        self._grown = [array("q", bytes(8 * self._max_rounds)) for _ in self._metrics]
        self._lengths = array("q", bytes(8 * self._max_rounds))

    def call_counts(self) -> Iterator[int]:
        """Yield how many calls to make next; what they leave behind is measured when the next number is requested."""
        if self._limits.warmup:
            yield self._limits.warmup
        with collect_young_only():
            yield from self._count()

    def _count(self) -> Iterator[int]:
        started = time.perf_counter()
        self._measure(0)
        calls = self._limits.calls
        for _ in range(self._limits.rounds):
            if self._exceeds(calls):
                return
            yield calls
            self._measure(calls)
        doublings = 0
        while self._must_continue(doublings, time.perf_counter() - started) and not self._exceeds(calls):
            yield calls
            self._measure(calls)
            doublings += 1
            calls *= 2

    def _measure(self, calls: int) -> None:
        gc.collect()
        for index, metric in enumerate(self._metrics):
            now = metric.read()
            self._grown[index][self._done] = now - self._before[index]
            self._before[index] = now
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
        # From the third round on the next one is estimated first, since each is twice as long as the one before.
        if self._done < MIN_ROUNDS:
            return False
        for metric, grown in zip(self._metrics, self._grown, strict=True):
            so_far = sum(grown[: self._done])
            if so_far + so_far * calls // self.calls > metric.stop_at:
                return True
        return False

    @property
    def is_clean(self) -> bool:
        """Whether no metric grows."""
        return all(verdict.answer is Verdict.CLEAN for _, verdict in self.verdicts())

    def verdicts(self) -> list[tuple[Metric, GrowthVerdict]]:
        """Return the verdict on each metric so far."""
        found: list[tuple[Metric, GrowthVerdict]] = []
        for metric, grown in zip(self._metrics, self._grown, strict=True):
            rounds = [Round(self._lengths[index], grown[index]) for index in range(self._done)]
            found.append((metric, judge_growth_by_call(rounds, tolerance=metric.tolerance)))
        return found
