"""What a hunt for leaks found: facts, and how they read.

Leaves to others: finding it (`_hunt`, `_culprits`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from memtools._records import as_dict, record
from memtools.analysis import GrowthVerdict, Verdict
from memtools.heap import Census, growth_between, heap_census, why_alive
from memtools.heap import WhyAlive as HeapAnswer
from memtools.heap import WhyAlive as Holding
from memtools.readings import descriptors
from memtools.testing._leak_search import Hunt, task_names, thread_names
from memtools.units import format_size

# Who holds what grows: asked only once something does.
#
# Covers: three counts of the heap with calls in between, the names of tasks, threads and descriptors that were left.
# Leaves to others: the calls (`_find_leaks`), the climb to a root (`memtools.heap`).

_MOST_NAMED: Final = 3
_SHORT_S: Final = 0.5  # for one climb
# Between two counts are some thousand calls at most: what is kept of each hundredth is a short list.
_SHORTEST: Final = 4
_NUMBER: Final = re.compile(r"[0-9]+")


class Culprits:
    """The search for who holds what grows.

    Args:
        calls: how many calls to make between two counts.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._counts: list[Census] = []
        self._names = _names()

    def plan(self) -> Iterator[int]:
        """Yield how many calls to make next; the heap is counted before each and after the last."""
        for _ in range(2):
            self._counts.append(heap_census(minimum=_SHORTEST))
            yield self._calls
        self._counts.append(heap_census(minimum=_SHORTEST))

    def answers(self) -> tuple[HeapAnswer, ...]:
        """Return who holds what grew, the largest growth first."""
        grown = growth_between(*self._counts, limit=_MOST_NAMED, minimum=2)[:_MOST_NAMED]
        self._counts.clear()  # they are not what leaks
        answers = (why_alive(one, timeout=_SHORT_S) for one in grown)
        return tuple(answer for answer in answers if answer.paths and not _is_our_book(answer))

    def left(self) -> tuple[str, ...]:
        """Return which tasks, threads and descriptors there are more of than before, one line each."""
        more = (_names() - self._names).most_common(_MOST_NAMED)
        return tuple(f"{what}: {count} more" for what, count in more if count > 1)


def _is_our_book(answer: HeapAnswer) -> bool:
    # Owners that are open are listed there: it grows along with tasks that do not end, and says nothing more.
    return answer.paths[0].holders[-1:] == ("memtools.ledger._ledger._open",)


def _names() -> Counter[str]:
    # Numbers differ from one to the next; what they have in common is the name.
    names = [f"task {name}" for name in task_names()]
    names += [f"thread {name}" for name in thread_names()]
    names += [f"descriptor {target}" for target in descriptors() or ()]
    return Counter(_NUMBER.sub("#", name) for name in names)


@record
class Finding:
    """What one signal says.

    Attributes:
        signal: what was counted: `"bytes"`, `"blocks"`, `"native bytes"`, `"tasks"`, `"threads"`, `"descriptors"`.
        answer: leak, clean or inconclusive.
        per_call: growth per call, in the signal's unit, over the later half of the calls.
        reason: why, in words.
    """

    signal: str
    answer: Verdict
    per_call: float
    reason: str

    def __str__(self) -> str:
        amount = format_size(self.per_call) if "bytes" in self.signal else f"{self.per_call:,.3g} {self.signal}"
        kind = " of native memory" if self.signal.startswith("native") else ""
        return f"{amount}{kind} a call: {self.reason}"


@record
class LeakReport:
    """What a hunt for leaks found.

    Attributes:
        tested: the name of the function.
        answer: leak if any signal leaks, clean if all are, else inconclusive.
        findings: what each signal says; those that leak first.
        holders: who holds what grew, one line each, the largest growth first; empty where nothing grows.
        calls: how often it was called, without the first calls that were not counted.
        duration_s: how long it took, in seconds.
        meter: who counted the bytes.
    """

    tested: str
    answer: Verdict
    findings: tuple[Finding, ...]
    holders: tuple[str, ...]
    calls: int
    duration_s: float
    meter: str

    @property
    def is_leak(self) -> bool:
        """Whether something grows with each call."""
        return self.answer is Verdict.LEAK

    def lines(self) -> tuple[str, ...]:
        """Return what is not clean, one line each, then who holds it."""
        return (*(str(one) for one in self.findings if one.answer is not Verdict.CLEAN), *self.holders)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        findings = [{**as_dict(one), "answer": one.answer.value} for one in self.findings]
        return {**as_dict(self), "answer": self.answer.value, "findings": findings, "holders": list(self.holders)}

    def __str__(self) -> str:
        head = (
            f"{self.tested}: {self.answer.value} after {self.calls:,} calls in {self.duration_s:.1f} s ({self.meter})"
        )
        return "\n  ".join((head, *self.lines()))

    def __repr__(self) -> str:
        return f"<LeakReport {self.tested!r} {self.answer.value}>"

    def _repr_html_(self) -> str:
        from html import escape  # for notebooks, not for whoever imports memtools

        return f"<pre>{escape(str(self))}</pre>"


# Make one report of what the signals say and who holds what grows.
#
# Leaves to others: the rounds (`_hunt`), the search for who holds it (`_culprits`), how it reads (`_reports`).

_ORDER: Final = {Verdict.LEAK: 0, Verdict.INCONCLUSIVE: 1, Verdict.CLEAN: 2}
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
    filling = held[0].paths[0].filling if held else ""
    return f"it may be {filling}" if filling else ""


def _finding(signal: str, verdict: GrowthVerdict, filling: str) -> Finding:
    if filling and verdict.answer is Verdict.LEAK and signal in _HELD_BY_OBJECTS:
        return Finding(signal, Verdict.INCONCLUSIVE, verdict.per_call, filling)
    return Finding(signal, verdict.answer, verdict.per_call, verdict.reason)
