"""A report as a table on a terminal.

Covers: columns that fit the terminal, what is left out and how often, notes explained once. No colours, so that
`NO_COLOR` has nothing to ask for. Leaves to others: the figures (`_words`), harmless names (`_visible`).
"""

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from memtools._text import display_width, printable, truncate_middle
from memtools.analysis import Leftover
from memtools.reports._rows import Growth, Row, notes_of
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.reports._report import Report


# The words and figures that text and HTML share.
#
# Covers: sizes in MiB, durations, bars, the sentences about the process. Leaves to others: where they are put (`_text`,
# `_html`).

_PEAK: Final = "peak: the most that one call had alive at once, with all that it called"
_RETAINED: Final = "retained: what was alive of it when each call ended, added up"
_ALIVE: Final = "still alive: what of that, and of what open calls hold, is alive now, whoever keeps it"
_NOT_KNOWN: Final = "still alive: not shown, as only the native meter knows what becomes of a block after the call"
_TIME: Final = "time: from the begin to the end of each call, others in between, added up"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def legend(rows: Sequence[Row], *, shows_retained: bool) -> list[str]:
    """Return what the columns mean that are there, and why one is not."""
    is_known = any(row.live_bytes is not None for row in rows)
    lines = [_PEAK, _RETAINED] if shows_retained else [_PEAK]
    return [*lines, _ALIVE if is_known or not rows else _NOT_KNOWN, _TIME]


def leftover_line(leftover: Leftover) -> str:
    """Return who leaves how much behind, in one line; the name is to be made harmless."""
    return (
        f"`{printable(leftover.name)}` leaves {format_size(leftover.per_call_bytes)} behind per call; "
        f"{leftover.calls:,} calls, {format_size(leftover.live_after_end_bytes)} still alive"
    )


def format_mib(size_bytes: float) -> str:
    """Return a size in MiB, without the unit: `1,234.56`."""
    text = f"{size_bytes / 2**20:,.2f}"
    return "0.00" if text == "-0.00" else text


def format_figure(size_bytes: float | None, row: Row) -> str:
    """Return a size in MiB with a `~` in front where the row is not exact; `-` where it is not known."""
    if size_bytes is None:
        return "-"
    return format_mib(size_bytes) if row.exact else f"~{format_mib(size_bytes)}"


def format_seconds(duration_s: float) -> str:
    """Return a duration: `0.012 s`, `12.3 s`, `1:02:03`."""
    if duration_s < 10:
        return f"{duration_s:.3f} s"
    if duration_s < 1000:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def fraction(part: float, whole: float) -> float:
    """Return `part / whole` between 0 and 1; 0 of nothing."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0


def draw_bar(fraction: float, width: int, *, ascii_only: bool) -> str:
    """Return a bar of at most `width` columns; anything above nothing shows."""
    if ascii_only:
        full = round(fraction * width) or (1 if fraction > 0 else 0)
        return "#" * full
    eighths = round(fraction * width * 8) or (1 if fraction > 0 else 0)
    full, rest = divmod(eighths, 8)
    return _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")


def process_lines(process: Growth) -> list[tuple[str, str, str]]:
    """Return what is known of the process as a whole: label, size in MiB, explanation."""
    lines = [("resident now", process.resident_bytes, ""), ("resident peak", process.peak_bytes, "since it began")]
    optional = [
        ("resident growth", process.resident_growth_bytes, "during the run, of the whole process; of it:"),
        ("  owned", process.owned_bytes, "by the scopes, tasks and functions above"),
        ("  nobody's", process.untracked_bytes, "allocated in Python while no owner had the turn"),
        ("  the meter's own", process.meter_bytes, "tables of tracemalloc"),
        ("  unattributed", process.unattributed_bytes, "C libraries, fragments, interpreter: no block of Python's"),
    ]
    lines += [(label, size, why) for label, size, why in optional if size is not None]
    if process.resident_growth_bytes is None:
        # Without a first reading there is no growth that these could be parts of.
        return [(label.strip(), format_mib(size), why) for label, size, why in lines]
    return [(label, format_mib(size), why) for label, size, why in lines]


_NARROWEST, _WIDEST = 80, 140
_GAP: Final = "  "
_MOST_LEFTOVERS: Final = 5
_HEADINGS: Final = ("calls", "open", "failed", "peak MiB", "retained", "still alive", "time")


def text_report(report: "Report", *, width: int | None, ascii_only: bool | None, most: int) -> str:
    """Return `report` as text of at most `width` columns."""
    page = _page(width, ascii_only, most)
    page.add_line(f"memtools: {printable(report.title)}, peak {format_mib(report.peak_bytes)} MiB{_meter_suffix(report.meters)}")
    for heading, rows in report.sections:
        if rows:
            page.table(heading, rows, whole=report.peak_bytes)
    page.leftovers(report)
    page.process(report)
    page.legend([row for _, rows in report.sections for _, row in rows])
    page.notes(report.notes)
    return page.text()


def text_rows(heading: str, rows: Sequence[Row], *, width: int | None, ascii_only: bool | None) -> str:
    """Return one table of rows, none left out, with its notes."""
    page = _page(width, ascii_only, len(rows))
    page.table(heading, [(0, row) for row in rows], whole=max((row.peak_bytes for row in rows), default=0))
    page.notes(notes_of(rows))
    return page.text().lstrip("\n")


def terminal_width() -> int:
    """Return the terminal's width, within what a table needs and an eye can follow."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)


def can_show_blocks(encoding: str | None) -> bool:
    """Return whether a stream of that encoding can show bars made of blocks, and an ellipsis."""
    try:
        "█▏…".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _page(width: int | None, ascii_only: bool | None, most: int) -> "_Page":
    if ascii_only is None:
        ascii_only = not can_show_blocks(getattr(sys.stdout, "encoding", None))
    return _Page(terminal_width() if width is None else max(width, _NARROWEST), ascii_only, most)


class _Page:
    """Lines of text, of at most so many columns."""

    def __init__(self, width: int, ascii_only: bool, most: int) -> None:
        self._width = width
        self._ascii_only = ascii_only
        self._most = most
        self._lines: list[str] = []

    def add_line(self, line: str) -> None:
        line = self._plain(line)
        self._lines.append(truncate_middle(line, self._width, mark=self._ellipsis))

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines)

    def table(self, heading: str, rows: Sequence[tuple[int, Row]], *, whole: int) -> None:
        shown = rows[: self._most]
        figures = [_figures(row) for _, row in shown]
        kept = _visible_columns([row for _, row in rows], figures)
        widths = [
            max(len(text) for text in (_HEADINGS[column], *(line[column] for line in figures))) for column in kept
        ]

        bar_width = max(self._width // 9, 8)
        name_width = self._width - sum(widths) - len(_GAP) * (len(kept) + 1) - bar_width - len(" 100%")
        self._lines.append("")
        self._row(heading, [_HEADINGS[column] for column in kept], widths, name_width, "share of peak")
        for (depth, row), line in zip(shown, figures, strict=True):
            name = _indented(self._plain(printable(row.name)), depth, name_width, self._ellipsis)
            part = fraction(row.peak_bytes, whole)
            drawn = f"{part:4.0%} {draw_bar(part, bar_width, ascii_only=self._ascii_only)}"
            self._row(name, [line[column] for column in kept], widths, name_width, drawn)
        if len(rows) > len(shown):
            self.add_line(f"{self._ellipsis} and {len(rows) - len(shown):,} more")

    def process(self, report: "Report") -> None:
        lines = process_lines(report.process)
        label_width = max(len(label) for label, _, _ in lines)
        size_width = max(len(size) for _, size, _ in lines)
        self._lines.append("")
        self.add_line(f"{'process':<{label_width}}{_GAP}{'MiB':>{size_width}}")
        for label, size, why in lines:
            self.add_line(f"{label:<{label_width}}{_GAP}{size:>{size_width}}{_GAP}{why}")

    def leftovers(self, report: "Report") -> None:
        if not report.leftovers:
            return
        self._lines.append("")
        for leftover in report.leftovers[:_MOST_LEFTOVERS]:
            self.add_line(leftover_line(leftover))
        if len(report.leftovers) > _MOST_LEFTOVERS:
            self.add_line(f"{self._ellipsis} and {len(report.leftovers) - _MOST_LEFTOVERS:,} more")

    def legend(self, rows: Sequence[Row]) -> None:
        self._lines.append("")
        for line in legend(rows, shows_retained=not _all_known(rows)):
            self.add_line(line)

    def notes(self, notes: dict[str, int]) -> None:
        for note, count in notes.items():
            self.add_line(f"~ not exact: {printable(note)} ({count} row{'s' if count > 1 else ''})")

    def _row(self, name: str, figures: list[str], widths: list[int], name_width: int, drawn: str) -> None:
        name = truncate_middle(name, name_width, mark=self._ellipsis)
        padded = name + " " * (name_width - display_width(name))
        cells = [f"{text:>{width}}" for text, width in zip(figures, widths, strict=True)]
        self._lines.append(_GAP.join([padded, *cells, drawn]))

    def _plain(self, text: str) -> str:
        return text.encode("ascii", "backslashreplace").decode("ascii") if self._ascii_only else text

    @property
    def _ellipsis(self) -> str:
        return "..." if self._ascii_only else "…"


def _indented(name: str, depth: int, width: int, ellipsis: str) -> str:
    # Deep trees go on at the right margin of the indentation, so that a name always has room.
    indent = "  " * min(depth, width // 4)
    return indent + truncate_middle(name, width - len(indent), mark=ellipsis)


def _visible_columns(rows: Sequence[Row], figures: Sequence[Sequence[str]]) -> list[int]:
    left_out = {column for column in (1, 2) if all(line[column] == "0" for line in figures)}
    # What is still alive says what one asks of "retained", and there is no room for both.
    left_out.add(4 if _all_known(rows) else 5)
    return [column for column in range(len(_HEADINGS)) if column not in left_out]


def _all_known(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.live_bytes is not None for row in rows)


def _figures(row: Row) -> list[str]:
    return [
        f"{row.calls:,}",
        f"{row.active:,}",
        f"{row.failed:,}",
        format_figure(row.peak_bytes, row),
        format_figure(row.retained_bytes, row),
        format_figure(row.live_bytes, row),
        format_seconds(row.duration_s),
    ]


def _meter_suffix(meters: tuple[str, ...]) -> str:
    return f", counted by the {' and '.join(meters)} meter{'s' if len(meters) > 1 else ''}" if meters else ""
