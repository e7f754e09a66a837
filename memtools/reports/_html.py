"""A report as one HTML table, for notebooks, and for the child processes in the page of a run.

One table, inline styles, no script; readable on light and on dark pages, since it takes their colours. Every name is
escaped: it may come from a request.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from memtools._text import printable
from memtools.reports._rows import ReportFields, Row, notes_of
from memtools.reports._text import advice_lines, format_mib, leftover_line, legend, process_lines, row_figures, share_of

_TABLE: Final = "border-collapse:collapse;font:13px/1.5 ui-monospace,monospace;color:inherit;background:transparent"
_EDGE: Final = "border-bottom:1px solid rgba(128,128,128,.35)"
_LEFT: Final = f"text-align:left;padding:.15em .8em .15em 0;white-space:pre;{_EDGE}"
_RIGHT: Final = f"text-align:right;padding:.15em .8em .15em 0;white-space:nowrap;{_EDGE}"
_ABOVE: Final = ";padding-top:1.4em"  # between the sections
_BAR: Final = "height:.7em;border-radius:2px;background:#5b8def"
_HEADINGS: Final = ("calls", "open", "failed", "peak MiB", "retained MiB", "live MiB", "time")
_LIVE: Final = 5
_ALL: Final = len(_HEADINGS) + 2  # columns, with the name and the bar


def html_table(report: ReportFields) -> str:
    """Return `report` as a table that can stand in any page."""
    parts = [f'<table style="{_TABLE}">', f'<caption style="text-align:left">{_text(_caption(report))}</caption>']
    all_rows = [row for _, rows in report.sections for _, row in rows]
    columns = _columns(all_rows)
    for heading, rows in report.sections:
        if rows:
            parts += _section(heading, rows, report.peak_bytes, columns)
    parts += _lines(map(leftover_line, report.leftovers), f"font-weight:bold{_ABOVE}")
    parts += _process(report)
    parts += _lines(advice_lines(report.process))
    parts += _lines(legend(all_rows, shows_retained=True)) + _lines(_notes(report.notes))
    parts += _lines(report.caveats, "font-weight:bold")
    return "".join([*parts, "</table>"])


def html_rows(heading: str, rows: Sequence[Row]) -> str:
    """Return one table of rows with its notes."""
    highest = max((row.peak_bytes for row in rows), default=0)
    section = _section(heading, [(0, row) for row in rows], highest, _columns(rows))
    return "".join([f'<table style="{_TABLE}">', *section, *_lines(_notes(notes_of(rows))), "</table>"])


def _columns(rows: Iterable[Row]) -> list[int]:
    is_known = any(row.live_bytes is not None for row in rows)
    return [column for column in range(len(_HEADINGS)) if is_known or column != _LIVE]


def _section(heading: str, rows: Iterable[tuple[int, Row]], highest: int, columns: list[int]) -> list[str]:
    left, right = _LEFT + _ABOVE, _RIGHT + _ABOVE
    cells = [_cell("th", heading, left), *(_cell("th", _HEADINGS[column], right) for column in columns)]
    lines = [f"<tbody><tr>{''.join(cells)}{_cell('th', 'share of peak', left)}</tr>"]
    for depth, row in rows:
        figures = row_figures(row)
        indented = f"{_LEFT};padding-left:{min(depth, 12) * 1.2:.1f}em"
        cells = [_cell("td", row.name, indented), *(_cell("td", figures[column], _RIGHT) for column in columns)]
        percent = share_of(row.peak_bytes, highest) * 100
        drawn = f'<td style="{_LEFT};min-width:10em"><div style="{_BAR};width:{percent:.1f}%"></div></td>'
        lines.append(f"<tr>{''.join(cells)}{drawn}</tr>")
    return [*lines, "</tbody>"]


def _process(report: ReportFields) -> list[str]:
    lines = [f"<tbody><tr>{_cell('th', 'process', _LEFT + _ABOVE)}{_wide('MiB', 'th')}</tr>"]
    for label, size, explanation in process_lines(report.process):
        lines.append(f"<tr>{_cell('td', label, _LEFT)}{_wide(f'{size}  {explanation}'.rstrip(), 'td')}</tr>")
    return [*lines, "</tbody>"]


def _notes(notes: dict[str, int]) -> list[str]:
    return [f"~ not exact: {note} ({count} row{'s' if count > 1 else ''})" for note, count in notes.items()]


def _lines(lines: Iterable[str], style: str = "") -> list[str]:
    style = f"text-align:left;{style}"
    return [f'<tbody><tr><td colspan="{_ALL}" style="{style}">{_text(line)}</td></tr></tbody>' for line in lines]


def _wide(text: str, tag: str) -> str:
    return f'<{tag} colspan="{_ALL - 1}" style="{_LEFT}">{_text(text)}</{tag}>'


def _cell(tag: str, text: str, style: str) -> str:
    return f'<{tag} style="{style}">{_text(text)}</{tag}>'


def _caption(report: ReportFields) -> str:
    meters = f", counted by: {', '.join(report.meters)}" if report.meters else ""
    return f"memtools: {report.title}, peak {format_mib(report.peak_bytes)} MiB{meters}"


def _text(text: str) -> str:
    return escape(printable(text))
