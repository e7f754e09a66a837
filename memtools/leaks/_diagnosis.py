"""The answer: what leaks, how fast, who holds it. Records, and how they read.

Leaves to others: finding it out (`_investigation`).
"""

from collections.abc import Sequence
from typing import Final

from memtools._records import record
from memtools.analysis import LeakKind, LeakVerdict, Leftover
from memtools.heap import WhyAlive
from memtools.units import format_size

_MOST: Final = 5  # lines
_UNSEEN: Final = {
    LeakKind.PYTHON: "no container of Python's grows: large objects, or held from C code",
    LeakKind.NATIVE: "nothing of Python's grows along with it",
    LeakKind.FRAGMENTATION: "nothing of Python's grows along with it",
}
_WHAT_TO_DO: Final = {
    LeakKind.PYTHON: "measure the functions that come into question with @profile_memory",
    LeakKind.NATIVE: "a C library keeps it: see which calls grow malloc_bytes(), or record with memray --native",
    LeakKind.FRAGMENTATION: "mappings, stacks, or fragments: look at /proc/PID/smaps; trim_heap() gives fragments back",
}


@record
class Leak:
    """One thing that leaks, and who holds it.

    Attributes:
        kind: what kind of memory grows in this process.
        bytes_per_s: how fast the process grows, in bytes per second; 0 for all leaks but the first, as nobody knows
            each one's share.
        what: what grows, how fast, how much there is.
        holders: who holds it, the nearest first; empty where that is not known.
        hint: what to do about it; empty where nothing is known.
    """

    kind: LeakKind
    bytes_per_s: float
    what: str
    holders: tuple[str, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        rate = f" +{format_size(self.bytes_per_s)}/s" if self.bytes_per_s else ""
        held = "".join(f" <- {holder}" for holder in self.holders)
        return f"LEAK {self.kind.value}{rate} | {self.what}{held}{f' | {self.hint}' if self.hint else ''}"

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "kind": self.kind.value,
            "bytes_per_s": round(self.bytes_per_s),
            "what": self.what,
            "holders": list(self.holders),
            "hint": self.hint,
        }


@record
class Diagnosis:
    """Whether this process leaks, what, and who holds it.

    Attributes:
        verdict: which kind of memory grows, with the rate and the reason.
        leaks: one for each that was found, the most important first; empty where nothing leaks.
        note: what could not be looked at, and why; empty where everything was.
    """

    verdict: LeakVerdict
    leaks: tuple[Leak, ...]
    note: str = ""

    @property
    def is_leak(self) -> bool:
        """Whether something leaks."""
        return bool(self.leaks)

    def lines(self) -> tuple[str, ...]:
        """Return one line per leak, or the one line that says why there is none."""
        note = f" ({self.note})" if self.note else ""
        if not self.leaks:
            return (f"no leak: {self.verdict.reason}{note}",)
        first, *more = map(str, self.leaks)
        return (first + note, *more)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "verdict": self.verdict.kind.value,
            "bytes_per_s": round(self.verdict.bytes_per_s),
            "blocks_per_s": round(self.verdict.blocks_per_s, 1),
            "seconds": round(self.verdict.seconds, 1),
            "reason": self.verdict.reason,
            "note": self.note,
            "leaks": [leak.to_dict() for leak in self.leaks],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def make_diagnosis(
    verdict: LeakVerdict, answers: Sequence[WhyAlive], leftovers: Sequence[Leftover], note: str = ""
) -> Diagnosis:
    """Return the answer that the findings make together.

    Args:
        verdict: what the counters say.
        answers: who holds what grows, the fastest first.
        leftovers: which owners have ended and left something behind, the most first.
        note: what could not be looked at.
    """
    if not verdict.is_leak:
        return Diagnosis(verdict, (), note)
    filling = answers[0].paths[0].filling if answers and answers[0].paths else ""
    if filling and not leftovers:
        # A leak beside a cache that fills up shows when the cache is full.
        quiet = LeakVerdict(LeakKind.NONE, 0.0, 0.0, verdict.seconds, f"what grows may be {filling}")
        return Diagnosis(quiet, (), note)
    held = [Leak(verdict.kind, 0.0, *_told(answer)) for answer in answers]
    left = [Leak(verdict.kind, 0.0, _told_of(leftover)) for leftover in leftovers]
    # A root says more than a function that only called; and a function says more than no root at all.
    rooted = bool(answers) and answers[0].paths[0].is_rooted
    found = [*held[:1], *left[:1], *held[1:], *left[1:]] if rooted else [*left[:1], *held, *left[1:]]
    found = found or [Leak(verdict.kind, 0.0, _UNSEEN[verdict.kind], (), _WHAT_TO_DO[verdict.kind])]
    first = found[0]
    found[0] = Leak(first.kind, verdict.bytes_per_s, first.what, first.holders, first.hint)
    return Diagnosis(verdict, tuple(found[:_MOST]), note)


def _told(answer: WhyAlive) -> tuple[str, tuple[str, ...], str]:
    what = str(answer.growth) if answer.growth is not None else answer.what
    if answer.example:
        what += f", newest {answer.example}"
    return what, answer.paths[0].holders, answer.hint


def _told_of(leftover: Leftover) -> str:
    left, per_call = format_size(leftover.live_after_end_bytes), format_size(leftover.per_call_bytes)
    calls = "run" if leftover.kind == "task" else leftover.kind
    return (
        f"{leftover.kind} {leftover.name} leaves {per_call} behind per {calls}: {leftover.calls:,} ended, {left} left"
    )
