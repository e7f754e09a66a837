"""Pure verdicts on figures: no clock, no process, no object of the program."""

from memtools.analysis._growth_by_call import GrowthVerdict, Leftover, Verdict
from memtools.analysis._leak_kind import LeakKind, LeakVerdict

__all__ = [
    "GrowthVerdict",
    "LeakKind",
    "LeakVerdict",
    "Leftover",
    "Verdict",
]
