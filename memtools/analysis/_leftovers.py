"""Functions, scopes and tasks that leave memory behind with every call.

The first sign of a leak. What each call leaves is told from what the first calls filled (caches, imports), and the
function that leaves it from those that call it.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

from memtools._records import as_dict, record
from memtools.ledger import AccountStatistics

# What the last half of the calls must have added. Less may be garbage that was not collected yet, or free lists of the
# interpreter (80 lists, 80 dicts, 2,000 tuples of each short length).
MIN_BYTES: Final = 256 * 1024
MIN_PER_CALL: Final = 16  # bytes of the smallest block
STEADY: Final = 0.75  # of the slope before: growth as a square root has 0.71, a cache that fills up still less
PARTS: Final = 3


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
    points = [point for point in live_at_checkpoints if 2 * point[0] <= calls][-PARTS:]
    if len(points) < PARTS:
        return 0.0
    rise = live_after_end_bytes - points[-1][1]
    rates = [_slope(*pair) for pair in pairwise([*points, (calls, live_after_end_bytes)])]
    goes_on = min(rates) > 0 and all(after >= STEADY * before for before, after in pairwise(rates))
    return rates[-1] if goes_on and rise >= MIN_BYTES and rates[-1] >= MIN_PER_CALL else 0.0


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
