"""Pure judgement: figures in, an answer with its reason out. No clock, no process, no objects of anybody's."""

from memtools.analysis._growth_by_call import LEAST_ROUNDS, Answer, Round, Verdict, judge_growth_by_call
from memtools.analysis._leak_kind import LeakKind, LeakVerdict, judge_leak
from memtools.analysis._leftovers import Leftover, find_leftovers

__all__ = [
    "LEAST_ROUNDS",
    "Answer",
    "LeakKind",
    "LeakVerdict",
    "Leftover",
    "Round",
    "Verdict",
    "find_leftovers",
    "judge_growth_by_call",
    "judge_leak",
]
