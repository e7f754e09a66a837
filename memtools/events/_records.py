"""The facts that memtools tells, one frozen record each.

Leaves to others: who listens (`memtools.events.subscribe`). Records hold numbers and names, never live objects, so that
a hook that keeps them keeps nothing else alive.
"""

from memtools.readings import Level, Reading
from memtools.records import record


@record
class ScopeEnded:
    """A scope, a decorated call or a task has ended, and this is what it used.

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        path: names from the outermost owner down to this one.
        retained_bytes: bytes that it allocated and that were alive at its end.
        peak_bytes: its highest simultaneous live bytes.
        resident_delta_bytes: change of the resident memory of the whole process.
        duration_s: wall time in seconds.
        meter: which meter took the figures.
        exact: False where others may have leaked into the figures.
        failed: whether it ended with an exception.
    """

    name: str
    kind: str
    path: tuple[str, ...]
    retained_bytes: int
    peak_bytes: int
    resident_delta_bytes: int
    duration_s: float
    meter: str
    exact: bool
    failed: bool


@record
class HighUsage:
    """An owner passed its warning size; the guide's "High memory increase".

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: what it used.
        warn_bytes: the size that it passed.
        largest: up to three of its children with the highest peaks, as (name, peak in bytes).
    """

    name: str
    kind: str
    used_bytes: int
    warn_bytes: int
    largest: tuple[tuple[str, int], ...]


@record
class BudgetOverrun:
    """An owner used more than its budget; told whether or not an exception follows.

    Attributes:
        name: the owner's name.
        kind: `"scope"`, `"call"` or `"task"`.
        used_bytes: what it used when this was seen.
        budget_bytes: what it was allowed.
        measure: `"peak"`, `"retained"` or `"resident"`.
        in_flight: True when it was seen before the owner ended.
    """

    name: str
    kind: str
    used_bytes: int
    budget_bytes: int
    measure: str
    in_flight: bool


@record
class TaskAbandoned:
    """A task scope ended while a task of it went on in spite of being cancelled.

    Attributes:
        scope: the name of the task scope.
        task: the name of the task.
        grace_s: how long it was waited for after the cancellation, in seconds.
    """

    scope: str
    task: str
    grace_s: float


@record
class ReadingTaken:
    """The monitor has looked at the process.

    Attributes:
        reading: what it saw.
        level: how short memory is, by the monitor's thresholds and its hysteresis.
    """

    reading: Reading
    level: Level


@record
class LevelChanged:
    """The monitor moved from one level to another; the way back to `NORMAL` is told as well.

    Attributes:
        before: the level that was left.
        after: the level that was entered.
        reading: the reading that decided.
        threshold_bytes: the threshold that was passed, as used bytes; going down, the one that was left behind.
    """

    before: Level
    after: Level
    reading: Reading
    threshold_bytes: int


@record
class CleanupEnded:
    """Memory was given back on purpose, or that was tried.

    Attributes:
        level: how short memory was.
        before_bytes: resident memory before the first step.
        after_bytes: resident memory after the last step.
        steps: the steps that were taken, as (name, bytes given back as far as known, seconds).
        duration_s: wall time of them all.
    """

    level: Level
    before_bytes: int
    after_bytes: int
    steps: tuple[tuple[str, int, float], ...]
    duration_s: float


@record
class ReclaimIneffective:
    """Every step was taken, and the process is still above the exit of its level; told once, until it has got below.

    Attributes:
        level: how short memory is.
        used_bytes: what is in use after the last step.
        target_bytes: what it would have had to get below.
        largest: up to three owners with the most live bytes, as (name, bytes).
    """

    level: Level
    used_bytes: int
    target_bytes: int
    largest: tuple[tuple[str, int], ...]


@record
class PressureFelt:
    """The kernel, or whoever writes to `$MEMORY_PRESSURE_WATCH`, says that memory is short.

    Attributes:
        source: the file that said so.
    """

    source: str
