"""Pure verdicts on figures: no clock, no process, no object of the program."""

from memtools.analysis._growth_by_call import (
    MIN_ROUNDS,
    GrowthVerdict,
    Leftover,
    Round,
    Verdict,
    find_leftovers,
    judge_growth_by_call,
)
from memtools.analysis._leak_kind import LeakKind, LeakVerdict, judge_leak

__all__ = [
    "MIN_ROUNDS",
    "GrowthVerdict",
    "LeakKind",
    "LeakVerdict",
    "Leftover",
    "Round",
    "Verdict",
    "find_leftovers",
    "judge_growth_by_call",
    "judge_leak",
]
