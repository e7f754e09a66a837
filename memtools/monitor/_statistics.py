"""What a monitor has seen and done so far, as frozen records.

Leaves to others: counting it (each part of the room counts its own), showing it (`_report`, `memtools.exporters`).
"""

import gc
import threading
from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import Final

from memtools._records import record
from memtools.readings import Headroom, Level, Limit, Reading


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
    """How one registered callback fared.

    Attributes:
        name: its qualified name.
        moment: `"warning"`, `"critical"`, `"normal"`, `"exhausted"` or `"recycle"`.
        calls: how often it was called.
        failures: how many of the calls raised or took longer than allowed.
        skipped: how often it was left out, because it was running already or its breaker was open.
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
    """Who was let in while memory was watched.

    Attributes:
        admitted: how many were let in.
        waited: how many of them had to wait.
        inside: how many are inside now.
        waiting: how many wait now.
        reserved_bytes: the sizes of those inside, added up.
    """

    admitted: int
    delayed: int
    active: int
    queued: int
    reserved_bytes: int


@record
class CollectorPauses:
    """How long the garbage collector has stopped everybody, while the monitor was started.

    Attributes:
        pauses: collections, of any generation, whoever asked for them.
        total_s: what they took together, in seconds.
        longest_s: the longest, in seconds.
    """

    pauses: int
    total_s: float
    longest_s: float


@record
class MonitorStatistics:
    """What a monitor has seen and done so far. Taking it copies figures and reads nothing anew.

    Attributes:
        name: the monitor's name.
        level: how short memory is.
        level_since_s: for how long it has been at this level, in seconds.
        reading: the last reading; None before the first look.
        limit: the limit that the thresholds were held against last; None before the first look.
        headroom: the room that was left when the beat, or a threshold that needs it, looked last; None before.
        warning_bytes: the use that enters `WARNING`, at present; None where only `free=` decides.
        critical_bytes: the same for `CRITICAL`.
        beat: who looks by time: `"task"`, `"thread"`, or `"none"` where it is not started or no thread could start.
        interval_s: seconds until the beat's next look.
        operations: operations of all names.
        failures: how many of them ended with an exception.
        looks: readings that were judged.
        failed_samples: readings that the system refused.
        level_changes: how often each level was entered.
        cleanups: climbs of the ladder.
        minor_collections: light clean-ups between them.
        freed_bytes: by how much resident memory fell during climbs, added up.
        cleanup_s: what climbs and light clean-ups took together, in seconds.
        ineffective_reclaims: how often the whole ladder was not enough.
        pressure_signals: how often the kernel, or `$MEMORY_PRESSURE_WATCH`, said that memory is short.
        callback_failures: calls of callbacks that raised or took too long.
        callbacks_broken: how many callbacks are left out now for failing again and again.
        admissions: who was let in by `admit()`.
        pauses: what the garbage collector took.
        by_operation: the operations by name, the one with the longest total first.
        callbacks: the callbacks, in order of registration.
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


# Count operations, and have every n-th of them look at memory.
#
# Covers: the account of each name, in bounded space; sampling. Leaves to others: functions as operations (`_watched`),
# the look itself (`_lookout`).
#
# Threads: any; no call is lost. Cost: some 0.3 us for an operation that is not sampled.

# As in the ledger's accounts: names may come from requests.
MAX_NAMES: Final = 256
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"


class Operation:
    """The account of one name. `note` is the hot path of the whole room."""

    __slots__ = ("_every", "_sample", "_tick", "calls", "failures", "lock", "longest_s", "name", "total_s")

    def __init__(self, name: str, every: int, tick: Callable[[], int], sample: Callable[[], None]) -> None:
        self.name = name
        self.lock = threading.RLock()  # a finaliser may record in the middle of a record
        self.calls = 0
        self.failures = 0
        self.total_s = 0.0
        self.longest_s = 0.0
        self._every = every
        self._tick = tick
        self._sample = sample

    def note(self, duration_s: float, failed: bool = False) -> None:
        """Add an operation that has ended; the n-th of all names looks at memory."""
        with self.lock:
            self.calls += 1
            self.total_s += duration_s
            if duration_s > self.longest_s:
                self.longest_s = duration_s
            if failed:
                self.failures += 1
        if not self._tick() % self._every:
            self._sample()

    def statistics(self) -> OperationStatistics:
        """Return the sums up to now."""
        with self.lock:
            return OperationStatistics(self.name, self.calls, self.failures, self.total_s, self.longest_s)


class Operations:
    """The operations of one monitor, by name.

    Args:
        every: operations between two samples.
        sample: called on each sampled operation; must not raise.
    """

    def __init__(self, every: int, sample: Callable[[], None]) -> None:
        self._every = every
        self._sample = sample
        self._tick = count(1).__next__  # one C call: no two threads get the same number
        self._lock = threading.RLock()
        self._by_name: dict[str, Operation] = {}

    def named(self, name: str) -> Operation:
        """Return the account of `name`; of `<other>` when there are too many names already."""
        known = self._by_name.get(name)
        if known is not None:
            return known

        name = presentable(name)
        with self._lock:
            if name not in self._by_name:
                if len(self._by_name) >= MAX_NAMES:
                    name = OTHER
                self._by_name.setdefault(name, Operation(name, self._every, self._tick, self._sample))
            return self._by_name[name]

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """Return the accounts, the one with the longest total first."""
        with self._lock:
            known = tuple(self._by_name.values())
        return tuple(sorted((one.statistics() for one in known), key=lambda one: one.total_s, reverse=True))

    def renew_locks(self) -> None:
        """Make new locks: in a forked child nobody will release the old ones."""
        self._lock = threading.RLock()
        for operation in tuple(self._by_name.values()):
            operation.lock = threading.RLock()


def presentable(name: str) -> str:
    """Return `name` as logs and reports may show it: cut to 200 characters, without line breaks of its own."""
    name = name[:MAX_NAME_LENGTH]
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


# Measure how long the garbage collector stops everybody.
#
# Covers: one hook in `gc.callbacks`, only while a monitor is started.
#
# The hook runs inside the collection, in whatever thread set it off: it adds up three figures and nothing more. One
# collection runs at a time, so there is no lock.


class PauseMeter:
    """Adds up pauses between `start` and `stop`."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._pauses = 0
        self._total_s = 0.0
        self._longest_s = 0.0

    def start(self) -> None:
        """Begin to listen to the collector; a second call does nothing."""
        if self._hear not in gc.callbacks:
            gc.callbacks.append(self._hear)

    def stop(self) -> None:
        """Listen no more."""
        if self._hear in gc.callbacks:
            gc.callbacks.remove(self._hear)
        self._began = None

    def statistics(self) -> CollectorPauses:
        """Return the figures so far."""
        return CollectorPauses(self._pauses, self._total_s, self._longest_s)

    def _hear(self, phase: str, _: dict[str, int]) -> None:
        now = perf_counter()
        if phase == "start":
            self._began = now
            return
        if self._began is None:
            return
        took = now - self._began
        self._began = None
        self._pauses += 1
        self._total_s += took
        self._longest_s = max(self._longest_s, took)
