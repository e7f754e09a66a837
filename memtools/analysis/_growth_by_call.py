"""Verdicts on growth per call, in a leak test and in the accounts of a program.

A pure function of what grew in how many calls. It uses three observations. CPython's own leak tests report a leak only
if every difference rises. psleak judges growth per call, and takes growth that falls by a fifth twice in a row for
something that settles. A test of a single run (pytest-memray) does not find a leak of 600 bytes per call, and cannot
tell a cache from a leak.

In the accounts, `find_leftovers` tells what each call leaves from what the first calls filled (caches, imports), and
the function that leaves it from those that call it.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import pairwise
from typing import Final

from memtools._records import as_dict, record
from memtools.ledger import AccountStatistics

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


# What the last half of the calls must have added. Less may be garbage that was not collected yet, or free lists of the
# interpreter (80 lists, 80 dicts, 2,000 tuples of each short length).
_MIN_LEFT_BYTES: Final = 256 * 1024
_MIN_PER_CALL: Final = 16  # bytes of the smallest block
_STEADY_SLOPE: Final = 0.75  # of the slope before: growth as a square root has 0.71, a cache that fills up still less
_PARTS: Final = 3


@record
class Leftover:
    """Owners of one name whose calls keep leaving memory behind.

    Attributes:
        name: the owners' name, as it was given: escape it before printing.
        kind: `"call"`, `"scope"` or `"task"`.
        calls: how many have ended.
        per_call_bytes: what each of the latest half of the calls has left.
        live_after_end_bytes: live bytes that all ended calls have left.
    """

    name: str
    kind: str
    calls: int
    per_call_bytes: int
    live_after_end_bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


def find_leftovers(accounts: Iterable[AccountStatistics]) -> tuple[Leftover, ...]:
    """Return the owners that keep leaving memory behind, the largest first; of nested ones only the innermost."""
    found: dict[tuple[str, str], Leftover] = {}
    for entry in _innermost(accounts):
        leftover = _leftover(entry)
        known = found.get((entry.kind, entry.name))
        found[entry.kind, entry.name] = leftover if known is None else _merged(known, leftover)
    return tuple(sorted(found.values(), key=lambda one: (-one.live_after_end_bytes, one.name)))


def per_call(calls: int, live_after_end_bytes: int | None, live_at_checkpoints: tuple[tuple[int, int], ...]) -> float:
    """Return what each of the latest half of the calls has left, in bytes; 0 if the growth has stopped.

    Args:
        calls: how many have ended.
        live_after_end_bytes: live bytes that they have left; None where the meter cannot tell.
        live_at_checkpoints: pairs of an earlier number of calls and the live bytes left by them at that time.
    """
    if live_after_end_bytes is None:
        return 0.0
    points = [point for point in live_at_checkpoints if 2 * point[0] <= calls][-_PARTS:]
    if len(points) < _PARTS:
        return 0.0
    rise = live_after_end_bytes - points[-1][1]
    rates = [_slope(*pair) for pair in pairwise([*points, (calls, live_after_end_bytes)])]
    goes_on = min(rates) > 0 and all(after >= _STEADY_SLOPE * before for before, after in pairwise(rates))
    return rates[-1] if goes_on and rise >= _MIN_LEFT_BYTES and rates[-1] >= _MIN_PER_CALL else 0.0


def _slope(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


def _rate(entry: AccountStatistics) -> float:
    return per_call(entry.started - entry.active, entry.live_after_end_bytes, entry.live_at_checkpoints)


def _innermost(entries: Iterable[AccountStatistics]) -> Iterator[AccountStatistics]:
    for entry in entries:
        below = list(_innermost(entry.children))
        left_below = sum(one.live_after_end_bytes or 0 for one in below)
        if _rate(entry) and 2 * left_below < (entry.live_after_end_bytes or 0):
            yield entry
        else:
            yield from below


def _leftover(entry: AccountStatistics) -> Leftover:
    return Leftover(
        entry.name, entry.kind, entry.started - entry.active, round(_rate(entry)), entry.live_after_end_bytes or 0
    )


def _merged(one: Leftover, other: Leftover) -> Leftover:
    calls = one.calls + other.calls
    rate = (one.per_call_bytes * one.calls + other.per_call_bytes * other.calls) // calls
    return Leftover(one.name, one.kind, calls, rate, one.live_after_end_bytes + other.live_after_end_bytes)
