"""The result of a leak search, and the search for the holders of what grows."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from memtools._records import as_dict, record
from memtools.analysis import GrowthVerdict, Verdict
from memtools.heap import Census, WhyAlive, growth_between, heap_census, why_alive
from memtools.readings._counters import descriptors
from memtools.testing._leak_search import LeakSearch, task_names, thread_names
from memtools.units import format_size

_MAX_HOLDERS: Final = 3
_WALK_TIMEOUT_S: Final = 0.5  # for one referrer walk
# Between two counts are at most some thousand calls: one item kept for each hundredth call makes a short list.
_MIN_LENGTH: Final = 4
_NUMBER: Final = re.compile(r"[0-9]+")


class HolderSearch:
    """The search for the holders of what grows: three counts of the heap with calls in between.

    Args:
        calls: how many calls to make between two counts.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._counts: list[Census] = []
        self._names = _names()

    def call_counts(self) -> Iterator[int]:
        """Yield how many calls to make next; the heap is counted before each and after the last."""
        for _ in range(2):
            self._counts.append(heap_census(minimum=_MIN_LENGTH))
            yield self._calls
        self._counts.append(heap_census(minimum=_MIN_LENGTH))

    def answers(self) -> tuple[WhyAlive, ...]:
        """Return the holders of what grew, the largest growth first."""
        grown = growth_between(*self._counts, limit=_MAX_HOLDERS, minimum=2)[:_MAX_HOLDERS]
        self._counts.clear()  # the counts are not part of the leak
        answers = (why_alive(one, timeout=_WALK_TIMEOUT_S) for one in grown)
        return tuple(answer for answer in answers if answer.paths and not _is_own_registry(answer))

    def new_resources(self) -> tuple[str, ...]:
        """Return the new tasks, threads and descriptors by name, one line for each name with more than one."""
        more = (_names() - self._names).most_common(_MAX_HOLDERS)
        return tuple(f"{what}: {count} more" for what, count in more if count > 1)


def _is_own_registry(answer: WhyAlive) -> bool:
    # The ledger's own list of open owners grows along with tasks that do not end, and adds no information.
    return answer.paths[0].holders[-1:] == ("memtools.ledger._ledger._open",)


def _names() -> Counter[str]:
    # Names that differ only in numbers count as one name.
    names = [f"task {name}" for name in task_names()]
    names += [f"thread {name}" for name in thread_names()]
    names += [f"descriptor {target}" for target in descriptors() or ()]
    return Counter(_NUMBER.sub("#", name) for name in names)


@record
class Finding:
    """The verdict on one metric.

    Attributes:
        signal: what was counted: `"bytes"`, `"blocks"`, `"native bytes"`, `"tasks"`, `"threads"`, `"descriptors"`.
        answer: leak, clean or inconclusive.
        per_call: growth per call, in the metric's unit, over the later half of the calls.
        reason: the reason, as a sentence.
    """

    metric: str
    answer: Verdict
    per_call: float
    reason: str

    def __str__(self) -> str:
        amount = format_size(self.per_call) if "bytes" in self.metric else f"{self.per_call:,.3g} {self.metric}"
        kind = " of native memory" if self.metric.startswith("native") else ""
        return f"{amount}{kind} per call: {self.reason}"


@record
class LeakReport:
    """The result of a leak search.

    Attributes:
        tested: the name of the function.
        answer: leak if any metric leaks, clean if all are clean, else inconclusive.
        findings: the verdict on each metric; leaks first.
        holders: what holds the growth, one line each, the largest growth first; empty if nothing grows.
        calls: how many calls were made, without the warm-up.
        duration_s: how long the search took, in seconds.
        meter: the name of the meter that counted the bytes.
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
        """Return one line for each metric that is not clean, then the holders."""
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
        from html import escape  # only for notebooks

        return f"<pre>{escape(str(self))}</pre>"


_ORDER: Final = {Verdict.LEAK: 0, Verdict.INCONCLUSIVE: 1, Verdict.CLEAN: 2}
# Metrics that a filling cache explains; a new task or descriptor is one more in any case.
_HELD_BY_OBJECTS: Final = frozenset(("bytes", "blocks", "native bytes"))


def build_report(
    name: str, search: LeakSearch, holders: HolderSearch | None, meter: str, duration_s: float
) -> LeakReport:
    """Return the report of a search.

    Args:
        name: the name of the tested function.
        search: the rounds.
        holders: the search for holders, None if nothing grows.
        meter: the name of the meter.
        duration_s: how long the search took, in seconds.
    """
    held = holders.answers() if holders is not None else ()
    left = holders.new_resources() if holders is not None else ()
    filling = _filling_cache(held)
    findings = [_finding(metric.name, verdict, filling) for metric, verdict in search.verdicts()]
    findings.sort(key=lambda finding: _ORDER[finding.answer])
    lines = (*left, *dict.fromkeys(str(answer).splitlines()[0] for answer in held))
    return LeakReport(name, findings[0].answer, tuple(findings), lines, search.calls, duration_s, meter)


def _filling_cache(held: Sequence[WhyAlive]) -> str:
    # The largest growth decides: a leak beside a cache that fills up becomes visible when the cache is full.
    filling = held[0].paths[0].filling if held else ""
    return f"it may be {filling}" if filling else ""


def _finding(metric: str, verdict: GrowthVerdict, filling: str) -> Finding:
    if filling and verdict.answer is Verdict.LEAK and metric in _HELD_BY_OBJECTS:
        return Finding(metric, Verdict.INCONCLUSIVE, verdict.per_call, filling)
    return Finding(metric, verdict.answer, verdict.per_call, verdict.reason)
