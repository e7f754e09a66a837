"""The statistics of a monitor, and its counters."""

import gc
import threading
from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import Final

from memtools._records import record
from memtools._text import printable
from memtools.readings import Headroom, Level, Limit, Reading

# As in the ledger's accounts: names may come from requests.
MAX_NAMES: Final = 256
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"
_FULL_COLLECTION: Final = 2  # the oldest generation


@record
class OperationStatistics:
    """The operations of one name, recorded by `watch` or `record`.

    Attributes:
        name: the function's name, or what was given to `record`.
        calls: how many have ended.
        failures: how many of them ended with an exception.
        total_s: the sum of their wall times, in seconds.
        longest_s: the longest of them, in seconds.
    """

    name: str
    calls: int
    failures: int
    total_s: float
    longest_s: float

    @property
    def mean_s(self) -> float:
        """The mean wall time in seconds; 0.0 before the first."""
        return self.total_s / self.calls if self.calls else 0.0


@record
class CallbackStatistics:
    """The calls of one registered callback.

    Attributes:
        name: its qualified name.
        trigger: `"warning"`, `"critical"`, `"normal"`, `"exhausted"` or `"recycle"`.
        calls: how often it was called.
        failures: how many of the calls raised or took longer than allowed.
        skipped: how often it was not called, because it was running already or its breaker was open.
        is_broken: whether its breaker is open: five failures in a row.
    """

    name: str
    trigger: str
    calls: int
    failures: int
    skipped: int
    is_broken: bool


@record
class AdmissionStatistics:
    """The blocks of work that `MemoryMonitor.admit` let in.

    Attributes:
        admitted: how many were admitted.
        delayed: how many had to wait.
        active: how many are running now.
        queued: how many wait now.
        reserved_bytes: the sizes of the active ones, added up.
    """

    admitted: int
    delayed: int
    active: int
    queued: int
    reserved_bytes: int


@record
class CollectorPauses:
    """How long the garbage collector has stopped the program, while the monitor was started.

    Attributes:
        pauses: collections of any generation, automatic or explicit.
        total_s: their total time, in seconds.
        longest_s: the longest, in seconds.
    """

    pauses: int
    total_s: float
    longest_s: float


@record
class MonitorStatistics:
    """The counts of a monitor so far. Taking them copies figures and reads nothing anew.

    Attributes:
        name: the monitor's name.
        level: how short memory is.
        level_since_s: for how long it has been at this level, in seconds.
        reading: the last reading; None before the first sample.
        limit: the limit of the last sample.
        headroom: the last headroom that was read, by the sampling loop or for a threshold that needs it; None before.
        warning_bytes: the use that enters `WARNING`, at present; None where only `free=` decides.
        critical_bytes: the same for `CRITICAL`.
        mode: what runs the sampling loop: `"task"`, `"thread"`, or `"none"` where the monitor is not started, or no
            thread could start.
        interval_s: seconds until the next sample of the sampling loop.
        operations: operations of all names.
        failures: how many of them ended with an exception.
        samples: readings that were assessed.
        failed_samples: readings that the system refused.
        level_changes: how often each level was entered.
        cleanups: reclaim passes.
        minor_collections: collections of the youngest generation between them.
        freed_bytes: by how much resident memory fell during reclaim passes, added up.
        cleanup_s: the total time of reclaim passes and minor collections, in seconds.
        ineffective_reclaims: how often all clean-up steps together were not enough.
        pressure_signals: how often the kernel, or `$MEMORY_PRESSURE_WATCH`, reported that memory is short.
        callback_failures: calls of callbacks that raised or took too long.
        callbacks_broken: how many callbacks are not called now, after five failures in a row.
        admissions: the blocks that `admit()` let in.
        pauses: the pauses of the garbage collector.
        by_operation: the operations by name, the one with the longest total first.
        callbacks: the callbacks, in order of registration.
        warning_free_bytes: the headroom below which `WARNING` is entered; None where only use decides.
        critical_free_bytes: the same for `CRITICAL`.
        seconds_to_limit: when the limit is reached, by the forecast; None while no floor rises, and without a forecast.
    """

    name: str
    level: Level
    level_since_s: float
    reading: Reading | None
    limit: Limit | None
    headroom: Headroom | None
    warning_bytes: int | None
    critical_bytes: int | None
    mode: str
    interval_s: float
    operations: int
    failures: int
    samples: int
    failed_samples: int
    level_changes: dict[Level, int]
    cleanups: int
    minor_collections: int
    freed_bytes: int
    cleanup_s: float
    ineffective_reclaims: int
    pressure_signals: int
    callback_failures: int
    callbacks_broken: int
    admissions: AdmissionStatistics
    pauses: CollectorPauses
    by_operation: tuple[OperationStatistics, ...]
    callbacks: tuple[CallbackStatistics, ...]
    warning_free_bytes: int | None = None
    critical_free_bytes: int | None = None
    seconds_to_limit: float | None = None


class OperationCounter:
    """The operations of one name. `add` is the hot path of the package: some 0.3 us without a sample."""

    __slots__ = ("_every", "_number", "_sample", "calls", "failures", "lock", "longest_s", "name", "total_s")

    def __init__(self, name: str, every: int, number: Callable[[], int], sample: Callable[[], None]) -> None:
        self.name = name
        self.lock = threading.RLock()  # a finaliser may record in the middle of a record
        self.calls = 0
        self.failures = 0
        self.total_s = 0.0
        self.longest_s = 0.0
        self._every = every
        self._number = number
        self._sample = sample

    def add(self, duration_s: float, failed: bool = False) -> None:
        """Add an operation that has ended; every n-th of all names samples memory."""
        with self.lock:
            self.calls += 1
            self.total_s += duration_s
            if duration_s > self.longest_s:
                self.longest_s = duration_s
            if failed:
                self.failures += 1
        if not self._number() % self._every:
            self._sample()

    def statistics(self) -> OperationStatistics:
        """Return the sums up to now."""
        with self.lock:
            return OperationStatistics(self.name, self.calls, self.failures, self.total_s, self.longest_s)


class OperationCounters:
    """The operations of one monitor, by name, at most `MAX_NAMES` of them. Any thread may add; no operation is lost.

    Args:
        every: operations between two samples.
        sample: called on each sampled operation; must not raise.
    """

    def __init__(self, every: int, sample: Callable[[], None]) -> None:
        self._every = every
        self._sample = sample
        self._number = count(1).__next__  # one C call: no two threads get the same number
        self._lock = threading.RLock()
        self._by_name: dict[str, OperationCounter] = {}

    def get(self, name: str) -> OperationCounter:
        """Return the counter of `name`; that of `<other>` when there are too many names already."""
        known = self._by_name.get(name)
        if known is not None:
            return known

        name = printable(name, MAX_NAME_LENGTH)
        with self._lock:
            if name not in self._by_name:
                if len(self._by_name) >= MAX_NAMES:
                    name = OTHER
                self._by_name.setdefault(name, OperationCounter(name, self._every, self._number, self._sample))
            return self._by_name[name]

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """Return the sums, the one with the longest total first."""
        with self._lock:
            counters = tuple(self._by_name.values())
        found = (counter.statistics() for counter in counters)
        return tuple(sorted(found, key=lambda operation: operation.total_s, reverse=True))

    def after_fork(self) -> None:
        """Make new locks: in a forked child no thread will release the old ones."""
        self._lock = threading.RLock()
        for counter in tuple(self._by_name.values()):
            counter.lock = threading.RLock()


class GcPauseMeter:
    """Adds up the pauses of the garbage collector between `start` and `stop`, with one hook in `gc.callbacks`.

    The hook runs inside the collection, in the thread that triggered it. One collection runs at a time, so there is no
    lock.

    Args:
        on_full: called at the end of each full collection.
    """

    def __init__(self, on_full: Callable[[], object] | None = None) -> None:
        self._on_full = on_full
        self._started_at: float | None = None
        self._pauses = 0
        self._total_s = 0.0
        self._longest_s = 0.0

    def start(self) -> None:
        """Add the hook; a second call does nothing."""
        if self._on_gc not in gc.callbacks:
            gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        """Remove the hook."""
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
        self._started_at = None

    def statistics(self) -> CollectorPauses:
        """Return the figures so far."""
        return CollectorPauses(self._pauses, self._total_s, self._longest_s)

    def _on_gc(self, phase: str, details: dict[str, int]) -> None:
        now = perf_counter()
        if phase == "start":
            self._started_at = now
            return
        if self._started_at is None:
            return
        duration_s = now - self._started_at
        self._started_at = None
        self._pauses += 1
        self._total_s += duration_s
        self._longest_s = max(self._longest_s, duration_s)
        if self._on_full is not None and details.get("generation") == _FULL_COLLECTION:
            self._on_full()
