"""What a hunt for leaks found: facts, and how they read.

Leaves to others: finding it (`_hunt`, `_culprits`).
"""

from memtools.analysis import Answer
from memtools.records import as_dict, record
from memtools.units import format_size


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
    answer: Answer
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
    answer: Answer
    findings: tuple[Finding, ...]
    holders: tuple[str, ...]
    calls: int
    duration_s: float
    meter: str

    @property
    def is_leak(self) -> bool:
        """Whether something grows with each call."""
        return self.answer is Answer.LEAK

    def lines(self) -> tuple[str, ...]:
        """Return what is not clean, one line each, then who holds it."""
        return (*(str(one) for one in self.findings if one.answer is not Answer.CLEAN), *self.holders)

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
