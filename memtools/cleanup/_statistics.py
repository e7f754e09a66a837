"""Frozen records of one reclaim pass and of all passes so far.

A file of its own because users read these records, and neither the steps nor the reclaimer own them all.
"""

from memtools._records import record
from memtools.readings import Level


@record
class StepResult:
    """What one step did in one pass.

    Attributes:
        name: the step.
        freed_bytes: the bytes that it is known to have freed.
        duration_s: its own time, in seconds of the reclaimer's clock; `reclaim_async` does not count the time that
            passes between two slices.
    """

    name: str
    freed_bytes: int
    duration_s: float


@record
class ReclaimResult:
    """What one reclaim pass did.

    Attributes:
        level: how short memory was.
        before_bytes: memory in use before the first step.
        after_bytes: memory in use after the last step.
        steps: the steps that ran, in order; a step that had nothing to do or was cooling down is not listed.
        duration_s: seconds from start to finish; `reclaim_async` counts the time between two slices, too.
        is_effective: whether usage is below the target.
        exhausted: whether every step has run to its end and usage is still not below the target.
    """

    level: Level
    before_bytes: int
    after_bytes: int
    steps: tuple[StepResult, ...]
    duration_s: float
    is_effective: bool
    exhausted: bool


@record
class StepStatistics:
    """Counters of one step.

    Attributes:
        name: the step.
        runs: the passes in which it ran.
        freed_bytes: the bytes that it is known to have freed, in all.
        spent_s: its own time in all, in seconds.
        longest_slice_s: the longest time for which it blocked the thread or the event loop, in seconds.
        failures: how often it raised.
        overruns: how often it did not return by its deadline.
        is_left_out: whether it is skipped for now because it failed five times in a row.
    """

    name: str
    runs: int
    freed_bytes: int
    spent_s: float
    longest_slice_s: float
    failures: int
    overruns: int
    is_left_out: bool


@record
class ShrinkableStatistics:
    """A registered object, still alive, whose `shrink` raised or returned late.

    Attributes:
        name: its class, and its attribute `name` if it has one.
        failures: how often its `shrink` raised.
        overruns: how often its `shrink` returned late.
        is_left_out: whether it is skipped for now because it failed five times in a row.
    """

    name: str
    failures: int
    overruns: int
    is_left_out: bool


@record
class ShrinkStatistics:
    """Counters of all calls of `shrink` on registered objects.

    Attributes:
        calls: how often a `shrink` was called.
        failures: how many of these calls raised.
        overruns: how many of these calls returned late.
        failing: the living objects with failures or overruns, the worst first, at most ten.
    """

    calls: int
    failures: int
    overruns: int
    failing: tuple[ShrinkableStatistics, ...]


@record
class ReclaimerStatistics:
    """Counters of a reclaimer.

    Attributes:
        passes: the reclaim passes so far.
        effective: the passes after which usage was below the target.
        throttled: the calls that did nothing: another pass was running, all steps were cooling down, or the share of
            wall time was used up.
        freed_bytes: the bytes that the steps are known to have freed, in all.
        spent_s: the time of all steps, in seconds; it stays below the share of wall time.
        budget_left_s: the seconds that the steps may spend now.
        steps: the counters of each step.
        shrink: the counters of `shrink` calls; None if no step calls registered objects.
    """

    passes: int
    effective: int
    throttled: int
    freed_bytes: int
    spent_s: float
    budget_left_s: float
    steps: tuple[StepStatistics, ...]
    shrink: ShrinkStatistics | None
