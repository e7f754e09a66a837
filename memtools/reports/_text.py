"""A report as a table for a terminal.

Without colours, so that there is nothing for `NO_COLOR` to switch off. The HTML of a report uses its texts and figures.
"""

import shutil
import sys
from collections.abc import Sequence
from typing import Final

from memtools._text import display_width, printable, truncate_middle
from memtools.analysis import Leftover
from memtools.reports._rows import Growth, ReportFields, Row, notes_of
from memtools.units import format_size

_NO_BLOCKS: Final = "no Python blocks: C libraries, fragmentation, interpreter"
_NO_BLOCKS_SPLIT: Final = "explained by no block of Python; of it:"
_MIN_PART_BYTES: Final = 1 << 20  # smaller parts are within what can be told
_MIN_ADVISED_BYTES: Final = 8 << 20
_PEAK: Final = "peak: the highest live memory of one call, with all that it called"
_RETAINED: Final = "retained: live when each call ended, added up"
_LIVE: Final = "live: allocated by these calls, ended or open, and not freed until now"
_NOT_KNOWN: Final = "live: not shown; only the native meter follows a block after the end of its call"
_TIME: Final = "time: from start to end of each call, with other tasks that ran in between, added up"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

_MIN_WIDTH, _MAX_WIDTH = 80, 140
_GAP: Final = "  "
_MAX_LEFTOVERS: Final = 5
_HEADINGS: Final = ("calls", "open", "failed", "peak MiB", "retained", "live MiB", "time")
_OPEN_AND_FAILED: Final = (1, 2)
_RETAINED_COLUMN: Final = 4
_LIVE_COLUMN: Final = 5


def text_report(
    report: ReportFields, *, width: int | None, ascii_only: bool | None, max_rows: int = 20, has_legend: bool = True
) -> str:
    """Return `report` as text of at most `width` columns, with what its columns mean where it `has_legend`."""
    page = _page(width, ascii_only, max_rows)
    title, peak = printable(report.title), format_mib(report.peak_bytes)
    page.add_line(f"memtools: {title}, peak {peak} MiB{_meter_suffix(report.meters)}")
    for heading, rows in report.sections:
        if rows:
            page.table(heading, rows, highest=report.peak_bytes)
    page.leftovers(report)
    page.process(report)
    if has_legend:
        page.legend([row for _, rows in report.sections for _, row in rows])
    page.notes(report.notes)
    page.caveats(report.caveats)
    return page.text()


def text_rows(heading: str, rows: Sequence[Row], *, width: int | None, ascii_only: bool | None) -> str:
    """Return one table with all rows, and its notes."""
    page = _page(width, ascii_only, len(rows))
    page.table(heading, [(0, row) for row in rows], highest=max((row.peak_bytes for row in rows), default=0))
    page.notes(notes_of(rows))
    return page.text().lstrip("\n")


def terminal_width() -> int:
    """Return the terminal's width, between what a table needs and what is easy to read."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, _MIN_WIDTH), _MAX_WIDTH)


def can_show_blocks(encoding: str | None) -> bool:
    """Return whether a stream of that encoding can show bars made of blocks, and an ellipsis."""
    try:
        "█▏…".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def legend(rows: Sequence[Row], *, shows_retained: bool) -> list[str]:
    """Return the meaning of the visible columns, and why the live bytes are hidden where they are."""
    is_known = any(row.live_bytes is not None for row in rows)
    lines = [_PEAK, _RETAINED] if shows_retained else [_PEAK]
    return [*lines, _LIVE if is_known or not rows else _NOT_KNOWN, _TIME]


def leftover_line(leftover: Leftover) -> str:
    """Return in one line what each call leaves behind."""
    return (
        f"`{printable(leftover.name)}` leaves {format_size(leftover.per_call_bytes)} behind per call; "
        f"{leftover.calls:,} calls, {format_size(leftover.live_after_end_bytes)} live"
    )


def process_lines(process: Growth) -> list[tuple[str, str, str]]:
    """Return the figures of the process as a whole: label, size in MiB, explanation."""
    lines = [("resident now", process.resident_bytes, ""), ("resident peak", process.peak_bytes, "since process start")]
    growth = "of the whole process during the run" + ("" if process.owned_bytes is None else "; of it:")
    optional = [
        ("resident growth", process.resident_growth_bytes, growth),
        ("  owned", process.owned_bytes, "by the scopes, tasks and functions above"),
        ("  untracked", process.untracked_bytes, "allocated outside any scope"),
        ("  meter", process.meter_bytes, "tables of tracemalloc"),
        ("  unattributed", process.unattributed_bytes, _NO_BLOCKS_SPLIT if process.parts else _NO_BLOCKS),
    ]
    lines += [(label, size, explanation) for label, size, explanation in optional if size is not None]
    indent = "  " if process.owned_bytes is None else "    "
    lines += [
        (indent + part.name, part.size_bytes, part.meaning)
        for part in process.parts
        if abs(part.size_bytes) >= _MIN_PART_BYTES
    ]
    if process.resident_growth_bytes is None:
        # Without a first reading there is no growth that these could be parts of.
        return [(label.strip(), format_mib(size), explanation) for label, size, explanation in lines]
    return [(label, format_mib(size), explanation) for label, size, explanation in lines]


def advice_lines(process: Growth) -> list[str]:
    """Return what would lower the parts that explain much of the growth, a line for each."""
    least = max(_MIN_ADVISED_BYTES, (process.resident_growth_bytes or 0) // 10)
    return [f"{part.name}: {part.advice}" for part in process.parts if part.advice and part.size_bytes >= least]


def row_figures(row: Row) -> list[str]:
    """Return the figures of a row as texts, one for each heading."""
    return [
        f"{row.calls:,}",
        f"{row.active:,}",
        f"{row.failed:,}",
        _format_figure(row.peak_bytes, row),
        _format_figure(row.retained_bytes, row),
        _format_figure(row.live_bytes, row),
        format_seconds(row.duration_s),
    ]


def format_mib(size_bytes: float) -> str:
    """Return a size in MiB, without the unit: `1,234.56`."""
    text = f"{size_bytes / 2**20:,.2f}"
    return "0.00" if text == "-0.00" else text


def _format_figure(size_bytes: float | None, row: Row) -> str:
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


def share_of(part: float, whole: float) -> float:
    """Return `part / whole` between 0 and 1; 0 where `whole` is 0."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0


def draw_bar(fraction: float, width: int, *, ascii_only: bool) -> str:
    """Return a bar of at most `width` columns; any fraction above 0 is visible."""
    if ascii_only:
        full = round(fraction * width) or (1 if fraction > 0 else 0)
        return "#" * full
    eighths = round(fraction * width * 8) or (1 if fraction > 0 else 0)
    full, rest = divmod(eighths, 8)
    return _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")


def _page(width: int | None, ascii_only: bool | None, max_rows: int) -> "_Page":
    if ascii_only is None:
        ascii_only = not can_show_blocks(getattr(sys.stdout, "encoding", None))
    return _Page(terminal_width() if width is None else max(width, _MIN_WIDTH), ascii_only, max_rows)


class _Page:
    """Lines of text of at most `width` columns."""

    def __init__(self, width: int, ascii_only: bool, max_rows: int) -> None:
        self._width = width
        self._ascii_only = ascii_only
        self._max_rows = max_rows
        self._lines: list[str] = []

    def add_line(self, line: str) -> None:
        line = self._encodable(line)
        self._lines.append(truncate_middle(line, self._width, mark=self._ellipsis))

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines)

    def table(self, heading: str, rows: Sequence[tuple[int, Row]], *, highest: int) -> None:
        shown = rows[: self._max_rows]
        figures = [row_figures(row) for _, row in shown]
        columns = _visible_columns([row for _, row in rows], figures)
        widths = [
            max(len(text) for text in (_HEADINGS[column], *(line[column] for line in figures))) for column in columns
        ]

        bar_width = max(self._width // 9, 8)
        name_width = self._width - sum(widths) - len(_GAP) * (len(columns) + 1) - bar_width - len(" 100%")
        self._lines.append("")
        self._add_row(heading, [_HEADINGS[column] for column in columns], widths, name_width, "share of peak")
        for (depth, row), line in zip(shown, figures, strict=True):
            name = _indented(self._encodable(printable(row.name)), depth, name_width, self._ellipsis)
            share = share_of(row.peak_bytes, highest)
            bar = f"{share:4.0%} {draw_bar(share, bar_width, ascii_only=self._ascii_only)}"
            self._add_row(name, [line[column] for column in columns], widths, name_width, bar)
        if len(rows) > len(shown):
            self.add_line(f"{self._ellipsis} and {len(rows) - len(shown):,} more")

    def process(self, report: ReportFields) -> None:
        lines = process_lines(report.process)
        label_width = max(len(label) for label, _, _ in lines)
        size_width = max(len(size) for _, size, _ in lines)
        self._lines.append("")
        self.add_line(f"{'process':<{label_width}}{_GAP}{'MiB':>{size_width}}")
        for label, size, explanation in lines:
            self.add_line(f"{label:<{label_width}}{_GAP}{size:>{size_width}}{_GAP}{explanation}")
        # Not truncated: see `caveats`.
        self._lines += [self._encodable(f"> {line}") for line in advice_lines(report.process)]

    def leftovers(self, report: ReportFields) -> None:
        if not report.leftovers:
            return
        self._lines.append("")
        for leftover in report.leftovers[:_MAX_LEFTOVERS]:
            self.add_line(leftover_line(leftover))
        if len(report.leftovers) > _MAX_LEFTOVERS:
            self.add_line(f"{self._ellipsis} and {len(report.leftovers) - _MAX_LEFTOVERS:,} more")

    def legend(self, rows: Sequence[Row]) -> None:
        self._lines.append("")
        for line in legend(rows, shows_retained=not _all_live_known(rows)):
            self.add_line(line)

    def notes(self, notes: dict[str, int]) -> None:
        for note, count in notes.items():
            self.add_line(f"~ not exact: {printable(note)} ({count} row{'s' if count > 1 else ''})")

    def caveats(self, caveats: Sequence[str]) -> None:
        # Not truncated: a sentence that has lost its middle misleads.
        self._lines += [self._encodable(f"! {printable(caveat)}") for caveat in caveats]

    def _add_row(self, name: str, figures: list[str], widths: list[int], name_width: int, bar: str) -> None:
        name = truncate_middle(name, name_width, mark=self._ellipsis)
        padded = name + " " * (name_width - display_width(name))
        cells = [f"{text:>{width}}" for text, width in zip(figures, widths, strict=True)]
        self._lines.append(_GAP.join([padded, *cells, bar]))

    def _encodable(self, text: str) -> str:
        return text.encode("ascii", "backslashreplace").decode("ascii") if self._ascii_only else text

    @property
    def _ellipsis(self) -> str:
        return "..." if self._ascii_only else "…"


def _indented(name: str, depth: int, width: int, ellipsis: str) -> str:
    # The indentation of deep trees is bounded, so that a name always has columns left.
    indent = "  " * min(depth, width // 4)
    return indent + truncate_middle(name, width - len(indent), mark=ellipsis)


def _visible_columns(rows: Sequence[Row], figures: Sequence[Sequence[str]]) -> list[int]:
    hidden = {column for column in _OPEN_AND_FAILED if all(line[column] == "0" for line in figures)}
    # The live bytes answer the question that "retained" is read for, and the line is too short for both.
    hidden.add(_RETAINED_COLUMN if _all_live_known(rows) else _LIVE_COLUMN)
    return [column for column in range(len(_HEADINGS)) if column not in hidden]


def _all_live_known(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.live_bytes is not None for row in rows)


def _meter_suffix(meters: tuple[str, ...]) -> str:
    return f", counted by the {' and '.join(meters)} meter{'s' if len(meters) > 1 else ''}" if meters else ""
