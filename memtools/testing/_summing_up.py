"""Make one report of what the signals say and who holds what grows.

Leaves to others: the rounds (`_hunt`), the search for who holds it (`_culprits`), how it reads (`_reports`).
"""

from collections.abc import Sequence
from typing import Final

from memtools.analysis import Answer, Verdict
from memtools.heap import Answer as Holding
from memtools.testing._culprits import Culprits
from memtools.testing._hunt import Hunt
from memtools.testing._reports import Finding, LeakReport

_ORDER: Final = {Answer.LEAK: 0, Answer.INCONCLUSIVE: 1, Answer.CLEAN: 2}
# What an object holds; a task or a descriptor more is one more whatever fills up.
_HELD_BY_OBJECTS: Final = frozenset(("bytes", "blocks", "native bytes"))


def sum_up(name: str, hunt: Hunt, culprits: Culprits | None, meter: str, duration_s: float) -> LeakReport:
    """Return what was found.

    Args:
        name: what was tested.
        hunt: the rounds.
        culprits: who was looked for, None where nothing grows.
        meter: who counted the bytes.
        duration_s: how long it took, in seconds.
    """
    held = culprits.answers() if culprits is not None else ()
    left = culprits.left() if culprits is not None else ()
    filling = _what_fills_up(held)
    findings = [_finding(signal.name, verdict, filling) for signal, verdict in hunt.verdicts()]
    findings.sort(key=lambda finding: _ORDER[finding.answer])
    holders = (*left, *dict.fromkeys(str(answer).splitlines()[0] for answer in held))
    return LeakReport(name, findings[0].answer, tuple(findings), holders, hunt.calls, duration_s, meter)


def _what_fills_up(held: Sequence[Holding]) -> str:
    # The largest growth decides: a leak beside a cache that fills up shows when the cache is full.
    filling = held[0].ways[0].filling if held else ""
    return f"it may be {filling}" if filling else ""


def _finding(signal: str, verdict: Verdict, filling: str) -> Finding:
    if filling and verdict.answer is Answer.LEAK and signal in _HELD_BY_OBJECTS:
        return Finding(signal, Answer.INCONCLUSIVE, verdict.per_call, filling)
    return Finding(signal, verdict.answer, verdict.per_call, verdict.reason)
