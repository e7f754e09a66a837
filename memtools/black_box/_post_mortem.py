"""The facts of a post-mortem, and how they are shown."""

import time
from typing import Final, Literal, TypeAlias

from memtools._charts import sparkline
from memtools._records import as_dict, record
from memtools._text import printable
from memtools.units import format_size

Verdict: TypeAlias = Literal["alive", "ended", "oom-killed", "oom-likely", "killed"]

_WORDS: Final[dict[Verdict, str]] = {
    "alive": "is alive",
    "ended": "ended by itself",
    "oom-killed": "was killed for want of memory",
    "oom-likely": "was killed, very likely for want of memory",
    "killed": "was killed, or ended without a word",
}
_LEVELS: Final = ("normal", "warning", "critical")
_MAX_SHOWN: Final = 8
_MAX_NAME: Final = 200
_MAX_NOTES: Final = 10
_LARGE: Final = 0.25  # a share that explains something
_LEAST_NATIVE_BYTES: Final = 32 << 20
_SPARKLINE_READINGS: Final = 120


@record
class Holding:
    """What the owners of one name and place held at the end, or one of them.

    Attributes:
        path: the names from the outermost owner to this one.
        kind: `"scope"`, `"call"`, `"task"`, or empty.
        held_bytes: their own blocks that were alive, without those of owners below.
        open_owners: how many of them were open.
        number: tells a single owner from others of its name; 0 for all of a name.
        peak_bytes: the most that a single owner is known to have held, with those below; 0 for all of a name.
    """

    path: tuple[str, ...]
    kind: str
    held_bytes: int
    open_owners: int
    number: int = 0
    peak_bytes: int = 0

    @property
    def name(self) -> str:
        """The path on one line, without characters that act on a terminal."""
        return " > ".join(printable(name, _MAX_NAME) for name in self.path)


@record
class PastReading:
    """One reading of the process.

    Attributes:
        at: when, in seconds since the epoch.
        monotonic_s: when, in seconds of `time.monotonic()`.
        resident_bytes: memory in use.
        limit_bytes: the limit; None where none was known.
        usage_bytes: what all processes of its cgroup used, without caches; None where it had none.
        counted_bytes: what the ledger had counted; None without one.
        oom_kills: how many processes of the cgroup had been killed for want of memory; None where that is not told.
        level: 0 for normal, 1 for warning, 2 for critical.
    """

    at: float
    monotonic_s: float
    resident_bytes: int
    limit_bytes: int | None
    usage_bytes: int | None
    counted_bytes: int | None
    oom_kills: int | None
    level: int


@record
class PostMortem:
    """What a black box says of a process.

    Attributes:
        path: the file.
        verdict: `"alive"`; `"ended"` regularly; `"oom-killed"`: the kernel has counted it; `"oom-likely"`: memory was
            about to be exhausted; `"killed"`: there was no regular end, for another reason.
        why: how that is known.
        pid: the process.
        name: the name of the program.
        command: its command line, without what looks like a secret.
        began_at: when the file was made, in seconds since the epoch.
        notes: what is damaged, missing or not exact.
        counted_bytes: the live bytes that the ledger had counted; None where none has.
        native_bytes: by how much resident memory had grown beyond that, at the last reading; None where not known.
        holdings: what the owners of each name held, the largest first.
        single_owner: the open owner that held the most.
        charged: the owner that allocated last.
        threads: the id of each thread, and the owner that it charged.
        readings: the readings that are left, the oldest first.
        last_words: what the process wrote of itself when its memory ran short; may be empty.
        facts: more about the process, as (label, text).
    """

    path: str
    verdict: Verdict
    why: str
    pid: int
    name: str
    command: str
    began_at: float
    notes: tuple[str, ...]
    counted_bytes: int | None
    native_bytes: int | None
    holdings: tuple[Holding, ...]
    single_owner: Holding | None
    charged: str
    threads: tuple[tuple[int, str], ...]
    readings: tuple[PastReading, ...]
    last_words: str
    facts: tuple[tuple[str, str], ...]

    @property
    def sentence(self) -> str:
        """What happened, and how that is known."""
        return f"{_WORDS[self.verdict]}: {self.why}"

    @property
    def summary(self) -> str:
        """What happened and who held the most, in one line."""
        parts = [f"process {self.pid} {_WORDS[self.verdict]}"]
        if self.readings:
            parts.append(_figure(self.readings[-1]))
        named = [holding for holding in self.holdings if holding.held_bytes > 0]
        if named:
            parts.append(f"{named[0].name} held {format_size(named[0].held_bytes)}")
        return "; ".join(parts)

    def advice(self) -> tuple[str, ...]:
        """Return what to do next, the most useful first."""
        if self.verdict in ("alive", "ended"):
            return ()
        found: list[str] = []
        counted = self.counted_bytes or 0
        single = self.single_owner
        largest = next(iter(self.holdings), None)
        if self.is_mostly_native:
            found.append(
                "most of the growth is not in Python's blocks: a C library, or memory that the allocator keeps. "
                "`memray run --native` shows which call"
            )
        elif single is not None and counted and single.held_bytes >= _LARGE * counted:
            found.append(
                f"one {single.kind or 'owner'} held it: give {single.name} a budget (memtools.memory_budget), and it "
                "ends with an exception instead of the process"
            )
        elif largest is not None and counted and largest.held_bytes >= _LARGE * counted and largest.kind:
            found.append(
                f"{largest.name} holds what its ended calls have left: `python -m memtools run --leaks` names the "
                "container, `memtools.assert_no_leaks` tests for it"
            )
        elif self.counted_bytes is None:
            found.append("no owner is known without the native ledger: `python -m memtools info` says why")
        if self.readings and not self.last_words:
            found.append("MemoryMonitor(black_box=...) with thresholds below the limit writes last words")
        return tuple(found)

    @property
    def is_mostly_native(self) -> bool:
        """Whether most of the growth is in no owner's blocks."""
        if self.native_bytes is None or self.counted_bytes is None or not self.readings:
            return False
        return self.native_bytes > max(_LEAST_NATIVE_BYTES, self.counted_bytes)

    def text(self, *, width: int = 60, ascii_only: bool = False) -> str:
        """Return all of it as lines, without characters that act on a terminal.

        Args:
            width: columns of the line of readings.
            ascii_only: whether that line has ASCII characters only.
        """
        lines = [
            f"process {self.pid}, {printable(self.command or self.name or '?', 300)}, begun {_when(self.began_at)}"
        ]
        lines.append(f"  {self.sentence}")
        lines += self._reading_lines(width, ascii_only)
        lines += self._owner_lines()
        if self.last_words:
            lines += ["last words:", *(f"  {printable(line, 2000)}" for line in self.last_words.splitlines())]
        lines += [f"note: {note}" for note in self.notes[:_MAX_NOTES]]
        if len(self.notes) > _MAX_NOTES:
            lines.append(f"note: and {len(self.notes) - _MAX_NOTES} more of that kind")
        lines += [f"advice: {advice}" for advice in self.advice()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Return the facts as a dict that JSON can hold; names come as they are, control characters included."""
        found = as_dict(self)
        found["holdings"] = [as_dict(holding) for holding in self.holdings]
        found["single_owner"] = None if self.single_owner is None else as_dict(self.single_owner)
        found["readings"] = [as_dict(reading) for reading in self.readings]
        found["facts"] = dict(self.facts)
        return found | {"summary": self.summary, "advice": list(self.advice())}

    def _reading_lines(self, width: int, ascii_only: bool) -> list[str]:
        if not self.readings:
            return ["no reading was written"]
        last = self.readings[-1]
        lines = [f"last reading {_when(last.at)}: {_figure(last)}"]
        shown = [reading.resident_bytes for reading in self.readings[-_SPARKLINE_READINGS:]]
        if len(shown) > 1:
            chart = sparkline(shown, width=width, ascii_only=ascii_only)
            seconds = self.readings[-1].monotonic_s - self.readings[-len(shown)].monotonic_s
            lines.append(
                f"  {chart}  {format_size(min(shown))} to {format_size(max(shown))} in the last {seconds:,.0f} s"
            )
        return lines

    def _owner_lines(self) -> list[str]:
        if self.counted_bytes is None:
            return []
        lines = [f"counted at the end: {format_size(self.counted_bytes)}; of that"]
        for holding in [each for each in self.holdings if each.held_bytes > 0][:_MAX_SHOWN]:
            is_open = f"  ({holding.open_owners} open)" if holding.open_owners else ""
            lines.append(f"{format_size(holding.held_bytes):>14}  {holding.name}{is_open}")
        if self.is_mostly_native and self.native_bytes is not None:
            lines.append(f"{format_size(self.native_bytes):>14}  more in no owner's blocks: native memory")
        single = self.single_owner
        if single is not None and single.held_bytes > 0:
            peak = f", at least {format_size(single.peak_bytes)} at its peak" if single.peak_bytes else ""
            lines.append(f"single owner #{single.number} of {single.name}: {format_size(single.held_bytes)}{peak}")
        lines.append(f"last to allocate: {printable(self.charged, _MAX_NAME)}")
        for ident, name in self.threads[:_MAX_SHOWN]:
            lines.append(f"  thread {ident} was in {printable(name, _MAX_NAME)}")
        return lines


def _figure(reading: PastReading) -> str:
    level = _LEVELS[reading.level] if 0 <= reading.level < len(_LEVELS) else "?"
    if not reading.limit_bytes:
        return f"resident {format_size(reading.resident_bytes)}, {level}"
    share = reading.resident_bytes / reading.limit_bytes
    return (
        f"resident {format_size(reading.resident_bytes)} of {format_size(reading.limit_bytes)} ({share:.1%}), {level}"
    )


def _when(unix: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
