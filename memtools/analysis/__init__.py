"""Pure judgement: figures in, an answer with its reason out. No clock, no process, no objects of anybody's."""

from memtools.analysis._growth_by_call import LEAST_ROUNDS, Answer, Round, Verdict, judge_growth_by_call

__all__ = [
    "LEAST_ROUNDS",
    "Answer",
    "Round",
    "Verdict",
    "judge_growth_by_call",
]
