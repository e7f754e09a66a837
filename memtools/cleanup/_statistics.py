"""What one climb of the ladder did, and how the ladder fared so far.

Leaves to others: climbing (`_ladder`), telling whether a climb was worth it (`memtools.monitor`).
"""

from memtools._records import record
from memtools.readings import Level


@record
class StepResult:
    """One step of one climb.

    Attributes:
        name: the step.
        freed_bytes: what it is known to have given back.
        duration_s: its own time, in seconds of the ladder's clock; in `reclaim_async`, without the turns of others.
    """

    name: str
    freed_bytes: int
    duration_s: float


@record
class ReclaimResult:
    """What one climb did.

    Attributes:
        level: how short memory was.
        before_bytes: what was in use before the first step.
        after_bytes: what was in use after the last one.
        steps: the steps that were taken, in order; those that had nothing to do or were held back are not among them.
        duration_s: from the first step to the last, in seconds; in `reclaim_async`, with the turns of others.
        is_effective: whether it got below the exit.
        exhausted: whether the last step was passed, without being below the exit and without running out of time.
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
    """How one step fared.

    Attributes:
        name: the step.
        taken: climbs in which it was taken.
        freed_bytes: what it is known to have given back, in all.
        spent_s: its own time in all, in seconds.
        longest_slice_s: the longest time for which it kept others waiting, in seconds.
        failures: how often it raised.
        overruns: how often it did not return by its deadline.
        is_left_out: whether it is left out for now, having failed too often in a row.
    """

    name: str
    taken: int
    freed_bytes: int
    spent_s: float
    longest_slice_s: float
    failures: int
    overruns: int
    is_left_out: bool


@record
class ShrinkableStatistics:
    """A registered thing, alive, that raised or did not return by its deadline.

    Attributes:
        name: its class, and its own name where it has one.
        failures: how often its `shrink` raised.
        overruns: how often it returned late.
        is_left_out: whether it is left out for now, having failed too often in a row.
    """

    name: str
    failures: int
    overruns: int
    is_left_out: bool


@record
class ShrinkStatistics:
    """How asking the registered things fared.

    Attributes:
        asked: calls of a `shrink`.
        failures: how many of them raised.
        overruns: how many of them returned late.
        troubled: the living things that did either, worst first, ten at most.
    """

    calls: int
    failures: int
    overruns: int
    failing: tuple[ShrinkableStatistics, ...]


@record
class ReclaimerStatistics:
    """How a ladder fared.

    Attributes:
        climbs: how often it was climbed.
        effective: how many of these climbs got below the exit.
        held_back: how often it was not climbed: another climb was going on, all steps had been taken a moment ago, or
            the share of wall time was used up.
        freed_bytes: what the steps are known to have given back, in all.
        spent_s: their time in all, in seconds; it stays below the share of wall time.
        credit_s: what they may spend now, in seconds.
        steps: each step.
        trim: how asking the registered things fared; None where no step of the ladder does so.
    """

    passes: int
    effective: int
    throttled: int
    freed_bytes: int
    spent_s: float
    budget_left_s: float
    steps: tuple[StepStatistics, ...]
    shrink: ShrinkStatistics | None
