"""What a monitor has seen and done so far, as frozen records.

Leaves to others: counting it (each part of the room counts its own), showing it (`_report`, `memtools.exporters`).
"""

from memtools.readings import Headroom, Level, Limit, Reading
from memtools.records import record


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
    moment: str
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
        promised_bytes: the sizes of those inside, added up.
    """

    admitted: int
    waited: int
    inside: int
    waiting: int
    promised_bytes: int


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
        missed_looks: readings that the system refused.
        level_changes: how often each level was entered.
        cleanups: climbs of the ladder.
        light_cleanups: light clean-ups between them.
        freed_bytes: by how much resident memory fell during climbs, added up.
        cleanup_s: what climbs and light clean-ups took together, in seconds.
        reclaims_in_vain: how often the whole ladder was not enough.
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
    beat: str
    interval_s: float
    operations: int
    failures: int
    looks: int
    missed_looks: int
    level_changes: dict[Level, int]
    cleanups: int
    light_cleanups: int
    freed_bytes: int
    cleanup_s: float
    reclaims_in_vain: int
    pressure_signals: int
    callback_failures: int
    callbacks_broken: int
    admissions: AdmissionStatistics
    pauses: CollectorPauses
    by_operation: tuple[OperationStatistics, ...]
    callbacks: tuple[CallbackStatistics, ...]
