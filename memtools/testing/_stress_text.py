"""A stress test as text on a terminal: the verdict, the rounds, two lines that go up and down.

Leaves to others: the figures (`_stress_report`).
"""

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from memtools.pictures import sparkline
from memtools.reports import can_show_blocks, visible
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.testing._stress_report import StressReport, StressRound

_HEADINGS: Final = ("round", "calls", "resident", "live", "a call", "p50", "p95", "p99", "longest")
_MOST_ROWS: Final = 30
_LEAST_SPAN: Final = 64 << 10  # bytes: noise of a few pages is no mountain
_UNITS: Final = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def stress_text(report: "StressReport", *, width: int | None, ascii_only: bool | None) -> str:
    """Return `report` in lines of at most `width` columns."""
    if ascii_only is None:
        ascii_only = not can_show_blocks(getattr(sys.stdout, "encoding", None))
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    lines = [*str(report.verdict).splitlines(), "", *_table(report, ascii_only), ""]
    lines += _curves(report.rounds, max(columns - 48, 10), ascii_only)
    return "\n".join(_fitting(line, columns, ascii_only) for line in lines)


def duration_text(duration_s: float) -> str:
    """Return a short time as people read it: `850 µs`, `1.2 ms`, `3.4 s`."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if duration_s >= factor), _UNITS[-1])
    amount = duration_s / factor
    return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:,.0f} {unit}"


def cells(report: "StressReport") -> list[tuple[str, ...]]:
    """Return the headings and a row of texts for each round; of many rounds the first and the last."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    pairs = list(zip((None, *report.rounds), report.rounds, strict=False))
    for before, one in pairs:
        grown = "" if before is None else format_size((one.live_bytes - before.live_bytes) / max(one.calls, 1))
        times = (one.p50_s, one.p95_s, one.p99_s, one.longest_s)
        shown = [duration_text(duration) for duration in times] if one.calls else [""] * len(times)
        sizes = (format_size(one.resident_bytes), format_size(one.live_bytes))
        rows.append((str(one.number), f"{one.calls:,}", *sizes, grown, *shown))
    if len(rows) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        rows[half:-half] = [("…", *[""] * (len(_HEADINGS) - 1))]
    return rows


def _table(report: "StressReport", ascii_only: bool) -> list[str]:
    rows = cells(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return [line.replace("µs", "us").replace("…", "...") if ascii_only else line for line in lines]


def _curves(rounds: Sequence["StressRound"], width: int, ascii_only: bool) -> list[str]:
    if not rounds:
        return []
    lines: list[str] = []
    for name, values in (
        ("resident", [one.resident_bytes for one in rounds]),
        ("live", [one.live_bytes for one in rounds]),
    ):
        drawn = sparkline(values, width=width, ascii_only=ascii_only, least_span=_LEAST_SPAN)
        lines.append(f"{name:<8}  {drawn}  {format_size(values[0])} to {format_size(values[-1])}")
    return lines


def _fitting(line: str, columns: int, ascii_only: bool) -> str:
    line = visible(line)
    if ascii_only:
        line = line.encode("ascii", "backslashreplace").decode("ascii")
    return line if len(line) <= columns else f"{line[: columns - 3]}..."
