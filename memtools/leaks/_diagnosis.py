"""The result of an investigation: what leaks, how fast, and which object holds it."""

from collections.abc import Sequence
from typing import Final

from memtools._records import record
from memtools.analysis import LeakKind, LeakVerdict, Leftover
from memtools.heap import WhyAlive
from memtools.leaks._children import ChildProcess
from memtools.units import format_size

_MAX_LEAKS: Final = 5  # lines
_NO_HOLDER: Final = {
    LeakKind.PYTHON: "no Python container grows: large objects, or objects held by C code",
    LeakKind.NATIVE: "no Python object grows along with it",
    LeakKind.FRAGMENTATION: "no Python object grows along with it",
}
_WHAT_TO_DO: Final = {
    LeakKind.PYTHON: "measure the likely functions with @profile_memory",
    LeakKind.NATIVE: "a C library keeps it: find calls that increase malloc_bytes(), or record with memray --native",
    LeakKind.FRAGMENTATION: "mappings, stacks, or fragments: see /proc/PID/smaps; trim_heap() returns fragments",
}
_IN_THE_CHILD: Final = "what holds it is known in that process only: use memtools.leaks.Investigator there"


@record
class Leak:
    """One leak, and what holds it.

    Attributes:
        kind: what kind of memory grows; unknown for a child process.
        bytes_per_s: growth of the process in bytes per second; 0 for all leaks but the first, since the share of each
            is unknown.
        what: what grows, how fast, and how much there is now.
        holders: the objects that hold it, the nearest first; empty if unknown.
        hint: what to do about it; empty if unknown.
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
    """Whether this process leaks, what leaks, and what holds it.

    Attributes:
        verdict: which kind of memory grows, with the rate and the reason.
        leaks: one for each leak found, the most important first; empty if there is none.
        note: what could not be examined, and why; empty if everything was.
        children: the child processes, with the verdict on their resident memory; nothing else is known of them.
    """

    verdict: LeakVerdict
    leaks: tuple[Leak, ...]
    note: str = ""
    children: tuple[ChildProcess, ...] = ()

    @property
    def is_leak(self) -> bool:
        """Whether something leaks, in this process or in a child process."""
        return bool(self.leaks)

    def lines(self) -> tuple[str, ...]:
        """Return one line per leak, or one line that says why there is none, or why that is unknown."""
        note = f" ({self.note})" if self.note else ""
        if not self.leaks:
            answer = "cannot tell" if self.verdict.kind is LeakKind.UNKNOWN else self._no_leak()
            return (f"{answer}: {self.verdict.reason}{note}",)
        first, *more = map(str, self.leaks)
        return (first + note, *more)

    def _no_leak(self) -> str:
        # Of a process that was not examined, nothing is said.
        seconds = f"in {self.verdict.seconds:,.0f} s" if self.verdict.seconds else ""
        if not self.children:
            return f"no leak seen {seconds}".rstrip()
        unknown = [str(child.pid) for child in self.children if child.verdict.kind is LeakKind.UNKNOWN]
        if unknown:
            pids = ", ".join(unknown)
            return f"no leak seen {seconds} in this process; cannot tell of its child processes ({pids})"
        count = len(self.children)
        return f"no leak seen {seconds} in this process and its {count} child process{'es' if count > 1 else ''}"

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
            "children": [child.to_dict() for child in self.children],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def make_diagnosis(
    verdict: LeakVerdict,
    answers: Sequence[WhyAlive],
    leftovers: Sequence[Leftover],
    note: str = "",
    children: Sequence[ChildProcess] = (),
) -> Diagnosis:
    """Return the diagnosis that the findings make together.

    Args:
        verdict: what the counters say.
        answers: the holders of what grows, the one that explains most first.
        leftovers: the owners that keep leaving memory behind, the largest first.
        note: what could not be examined.
        children: the child processes.
    """
    found = _leaks_of_process(verdict, answers, leftovers)
    filling = answers[0].paths[0].filling if verdict.is_leak and answers and answers[0].paths else ""
    if filling and not leftovers:
        # A leak beside a cache that fills up becomes visible when the cache is full.
        found = []
        verdict = LeakVerdict(LeakKind.UNKNOWN, 0.0, 0.0, verdict.seconds, f"what grows may be {filling}")
    found = found[:_MAX_LEAKS] + [_leak_of_child(child) for child in children if child.verdict.is_leak]
    return Diagnosis(verdict, tuple(found), note, tuple(children))


def _leaks_of_process(verdict: LeakVerdict, answers: Sequence[WhyAlive], leftovers: Sequence[Leftover]) -> list[Leak]:
    if not verdict.is_leak:
        return []
    held = [Leak(verdict.kind, 0.0, *_growth_and_holders(answer)) for answer in answers]
    left = [Leak(verdict.kind, 0.0, _describe_leftover(leftover)) for leftover in leftovers]
    # A root says more than a function that made the calls, and a function says more than a path without a root.
    rooted = bool(answers) and answers[0].paths[0].is_rooted
    found = [*held[:1], *left[:1], *held[1:], *left[1:]] if rooted else [*left[:1], *held, *left[1:]]
    found = found or [Leak(verdict.kind, 0.0, _NO_HOLDER[verdict.kind], (), _WHAT_TO_DO[verdict.kind])]
    first = found[0]
    found[0] = Leak(first.kind, verdict.bytes_per_s, first.what, first.holders, first.hint)
    return found


def _leak_of_child(child: ChildProcess) -> Leak:
    what = f"resident memory of child process {child.pid} ({child.name}) grows all the time"
    return Leak(LeakKind.UNKNOWN, child.verdict.bytes_per_s, what, (), _IN_THE_CHILD)


def _growth_and_holders(answer: WhyAlive) -> tuple[str, tuple[str, ...], str]:
    what = str(answer.growth) if answer.growth is not None else answer.what
    if answer.example:
        what += f", newest {answer.example}"
    return what, answer.paths[0].holders, answer.hint


def _describe_leftover(leftover: Leftover) -> str:
    left, per_call = format_size(leftover.live_after_end_bytes), format_size(leftover.per_call_bytes)
    calls = "run" if leftover.kind == "task" else leftover.kind
    return (
        f"{leftover.kind} {leftover.name} leaves {per_call} behind per {calls}: {leftover.calls:,} ended, {left} left"
    )
