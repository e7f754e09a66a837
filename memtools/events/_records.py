"""The facts that memtools tells, one frozen record each.

Leaves to others: who listens (`memtools.events.subscribe`). Records hold numbers and names, never live objects, so that
a hook that keeps them keeps nothing else alive.
"""

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
