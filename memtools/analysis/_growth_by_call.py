"""The verdict on growth per call: leak, clean or inconclusive.

A pure function of what grew in how many calls. It uses three observations. CPython's own leak tests report a leak only
if every difference rises. psleak judges growth per call, and takes growth that falls by a fifth twice in a row for
something that settles. A test of a single run (pytest-memray) does not find a leak of 600 bytes per call, and cannot
tell a cache from a leak.
"""

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import Final

from memtools._records import record

MIN_ROUNDS: Final = 3  # for a leak: two rounds may be one accident and its consequence
_SETTLING: Final = 0.8  # growth whose rate falls to this share twice in a row settles (psleak)
_STEADY: Final = 0.6  # a last rate below this share of the highest of the last three is falling, too


class Verdict(Enum):
    """What the growth means."""

    LEAK = "leak"
    CLEAN = "clean"
    INCONCLUSIVE = "inconclusive"


@record
class Round:
    """What grew in one round.

    Attributes:
        calls: how many calls the round had.
        grown: how much more there was afterwards, in bytes, blocks, tasks or descriptors; negative if there was less.
    """

    calls: int
    grown: int

    @property
    def rate(self) -> float:
        """Growth per call."""
        return self.grown / self.calls


@record
class GrowthVerdict:
    """The verdict on all rounds.

    Attributes:
        answer: leak, clean or inconclusive.
        per_call: growth per call over the later half of the calls.
        reason: the reason, as a sentence.
    """

    answer: Verdict
    per_call: float
    reason: str


def judge_growth_by_call(rounds: Sequence[Round], *, tolerance: float = 0.0) -> GrowthVerdict:
    """Return whether something grows with each call.

    A leak rises in each of the last three rounds, by more than `tolerance` per call, and does not slow down. Growth
    that has stopped is clean: a cache that is full, an import. Everything else is inconclusive, and more rounds of more
    calls decide it: what grows per round and not per call gets slower with each doubling of the calls.

    Args:
        rounds: in the order in which they were run.
        tolerance: growth per call that counts as none, in the unit of `grown`.
    """
    if not rounds:
        return GrowthVerdict(Verdict.INCONCLUSIVE, 0.0, "nothing was called")
    tail = _later_half(rounds)
    rate = sum(one.grown for one in tail) / sum(one.calls for one in tail)
    if rate <= tolerance:
        early = any(one.rate > tolerance for one in rounds)
        return GrowthVerdict(Verdict.CLEAN, rate, "it grew at first, and stopped" if early else "it does not grow")

    last = [one.rate for one in rounds[-MIN_ROUNDS:]]
    if len(last) < MIN_ROUNDS:
        return GrowthVerdict(Verdict.INCONCLUSIVE, rate, f"it grew, but {len(last)} rounds are too few to tell")
    if min(last) <= tolerance:
        return GrowthVerdict(Verdict.INCONCLUSIVE, rate, "it grows in some rounds and not in others")
    if _is_settling(last):
        return GrowthVerdict(Verdict.INCONCLUSIVE, rate, "it grows more slowly from round to round")
    return GrowthVerdict(Verdict.LEAK, rate, f"it grew in each of the last {MIN_ROUNDS} rounds, and does not slow down")


def _later_half(rounds: Sequence[Round]) -> Sequence[Round]:
    calls, half = 0, sum(one.calls for one in rounds) / 2
    for place in range(len(rounds) - 1, -1, -1):
        calls += rounds[place].calls
        if calls >= half and len(rounds) - place >= min(2, len(rounds)):
            return rounds[place:]
    return rounds


def _is_settling(rates: Sequence[float]) -> bool:
    falls_twice = all(after <= before * _SETTLING for before, after in pairwise(rates))
    return falls_twice or rates[-1] < max(rates) * _STEADY
