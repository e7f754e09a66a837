"""The result of a stress test, as a table, a chart, JSON and HTML."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Final

from memtools._charts import SECONDS, Chart, Line, Panel, Tone, chart_svg, html_escape, html_page, sparkline
from memtools._records import as_dict, record
from memtools._text import printable
from memtools.analysis import Verdict
from memtools.errors import ConfigError
from memtools.reports._text import can_show_blocks
from memtools.testing._leak_report import LeakReport
from memtools.units import format_size

_HEADINGS: Final = ("round", "calls", "resident", "live", "per call", "p50", "p95", "p99", "longest")
_MAX_ROWS: Final = 30
_MIN_SPAN: Final = 64 << 10  # bytes: a few pages of noise must not fill the sparkline
_UNITS: Final = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def stress_text(report: "StressReport", *, width: int | None, ascii_only: bool | None) -> str:
    """Return the report as text in lines of at most `width` columns."""
    if ascii_only is None:
        ascii_only = not can_show_blocks(getattr(sys.stdout, "encoding", None))
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    lines = [*str(report.verdict).splitlines(), "", *_table(report, ascii_only), ""]
    lines += _curves(report.rounds, max(columns - 48, 10), ascii_only)
    return "\n".join(_fitting(line, columns, ascii_only) for line in lines)


def duration_text(duration_s: float) -> str:
    """Return a duration with a fitting unit: `850 µs`, `1.2 ms`, `3.4 s`."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if duration_s >= factor), _UNITS[-1])
    amount = duration_s / factor
    return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:,.0f} {unit}"


def cells(report: "StressReport") -> list[tuple[str, ...]]:
    """Return the headings and a row of texts for each round; for many rounds only the first and the last rows."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    pairs = list(zip((None, *report.rounds), report.rounds, strict=False))
    for before, one in pairs:
        grown = "" if before is None else format_size((one.live_bytes - before.live_bytes) / max(one.calls, 1))
        times = (one.p50_s, one.p95_s, one.p99_s, one.longest_s)
        shown = [duration_text(duration) for duration in times] if one.calls else [""] * len(times)
        sizes = (format_size(one.resident_bytes), format_size(one.live_bytes))
        rows.append((str(one.number), f"{one.calls:,}", *sizes, grown, *shown))
    if len(rows) > _MAX_ROWS:
        half = _MAX_ROWS // 2
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
        drawn = sparkline(values, width=width, ascii_only=ascii_only, min_span=_MIN_SPAN)
        lines.append(f"{name:<8}  {drawn}  {format_size(values[0])} to {format_size(values[-1])}")
    return lines


def _fitting(line: str, columns: int, ascii_only: bool) -> str:
    line = printable(line)
    if ascii_only:
        line = line.encode("ascii", "backslashreplace").decode("ascii")
    return line if len(line) <= columns else f"{line[: columns - 3]}..."


_TONES: Final[dict[Verdict, Tone]] = {Verdict.LEAK: "bad", Verdict.CLEAN: "good", Verdict.INCONCLUSIVE: "doubtful"}
_MAX_NOTES: Final = 4
_NAN: Final = float("nan")
# Bytes: a few hundred pages, and a few KiB of Python objects, are noise.
_RESIDENT_SPAN: Final = 4 << 20
_LIVE_SPAN: Final = 16 << 10
_CELL: Final = "text-align:right;padding:.15em .8em .15em 0;border-bottom:1px solid rgba(128,128,128,.35)"


def stress_svg(report: "StressReport") -> str:
    """Return the chart."""
    return chart_svg(_chart(report))


def stress_page(report: "StressReport") -> str:
    """Return the chart, the verdict and the rounds as an HTML page."""
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells(report))
    body = (
        f"{stress_svg(report)}<pre>{html_escape(_shown(str(report.verdict)))}</pre>"
        f'<table style="border-collapse:collapse;font:13px/1.5 ui-monospace,monospace">{rows}</table>'
    )
    return html_page(f"memtools: {printable(report.tested)}, {report.answer.value}", body)


def _cell(shown: str) -> str:
    return f'<td style="{_CELL}">{html_escape(shown)}</td>'


def _chart(report: "StressReport") -> Chart:
    rounds = report.rounds
    calls = 0
    places: list[float] = []
    for one in rounds:
        calls += one.calls
        places.append(float(calls))
    notes = tuple(map(printable, report.verdict.lines()))
    concurrency = f", {report.concurrency} concurrently" if report.concurrency > 1 else ""
    headline = f"{report.calls:,} calls{concurrency} in {report.verdict.duration_s:.1f} s, {report.verdict.meter} meter"
    return Chart(
        title=f"{printable(report.tested)}: {report.answer.value}",
        tone=_TONES[report.answer],
        notes=(headline, *notes[:_MAX_NOTES]),
        axis="calls",
        positions=tuple(places),
        panels=(
            Panel(
                "Resident memory of the process",
                (Line("resident", tuple(float(one.resident_bytes) for one in rounds)),),
                min_span=_RESIDENT_SPAN,
            ),
            Panel(
                "Live bytes of the tested calls, since the first round",
                (Line("live", tuple(float(one.live_bytes) for one in rounds)),),
                min_span=_LIVE_SPAN,
                from_zero=True,
            ),
            Panel(
                "Latency of a call",
                tuple(
                    Line(name, tuple(value if one.calls else _NAN for one, value in zip(rounds, values, strict=True)))
                    for name, values in (
                        ("p99", [one.p99_s for one in rounds]),
                        ("p95", [one.p95_s for one in rounds]),
                        ("p50", [one.p50_s for one in rounds]),
                    )
                ),
                scale=SECONDS,
                from_zero=True,
            ),
        ),
    )


def _shown(lines: str) -> str:
    return "\n".join(map(printable, lines.splitlines()))


@record
class StressRound:
    """One round of a stress test.

    Attributes:
        number: 0 for the state before the first round.
        calls: how many calls it had.
        resident_bytes: resident memory of the process after the round.
        live_bytes: live bytes of the tested calls after the round, beyond those before the first round.
        duration_s: from its first call to the end of its last, in seconds.
        p50_s: the median latency of its calls, in seconds.
        p95_s: the 95th percentile, in seconds.
        p99_s: the 99th percentile, in seconds.
        longest_s: its longest call, in seconds.
    """

    number: int
    calls: int
    resident_bytes: int
    live_bytes: int
    duration_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float


@record
class StressReport:
    """The result of a stress test.

    Attributes:
        verdict: what grows, how fast, and what holds it.
        rounds: in order; the first, number 0, is the state before.
        concurrency: how many calls ran concurrently.
    """

    verdict: LeakReport
    rounds: tuple[StressRound, ...]
    concurrency: int = 1

    @property
    def tested(self) -> str:
        """The name of the operation."""
        return self.verdict.tested

    @property
    def answer(self) -> Verdict:
        """Leak, clean or inconclusive."""
        return self.verdict.answer

    @property
    def is_leak(self) -> bool:
        """Whether something grows with each call."""
        return self.verdict.is_leak

    @property
    def calls(self) -> int:
        """How many calls there were, without the warm-up."""
        return sum(one.calls for one in self.rounds)

    def to_text(self, *, width: int | None = None, ascii_only: bool | None = None) -> str:
        """Return the verdict, the holders of what grows, and a table of the rounds, for a terminal.

        Args:
            width: columns; by default the width of the terminal.
            ascii_only: use ASCII only; by default if standard output cannot encode more.
        """
        return stress_text(self, width=width, ascii_only=ascii_only)

    def to_dict(self) -> dict[str, object]:
        """Return everything as a dict that JSON can hold."""
        return {
            "tested": self.tested,
            "concurrency": self.concurrency,
            "verdict": self.verdict.to_dict(),
            "rounds": [as_dict(one) for one in self.rounds],
        }

    def svg(self) -> str:
        """Return the chart as one SVG element: resident and live bytes and latency over the calls."""
        return stress_svg(self)

    def html(self) -> str:
        """Return an HTML page with the chart, the verdict and the rounds; it has no script and loads nothing."""
        return stress_page(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report to `path`, as `.html`, `.svg`, `.json` or `.txt` by its suffix, replacing it.

        Raises:
            ConfigError: for another suffix.
            OSError: when the file cannot be written.
        """
        name = os.fspath(path)
        form = _FORMS.get(os.path.splitext(name)[1].lower())
        if form is None:
            raise ConfigError("path", name, f"a name that ends in {', '.join(_FORMS)}")
        with open(name, "w", encoding="utf-8") as file:
            file.write(form(self))

    def _repr_html_(self) -> str:
        return self.svg()

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return (
            f"<StressReport {self.tested!r} {self.answer.value}, {len(self.rounds) - 1} rounds, {self.calls:,} calls>"
        )


def _json(report: StressReport) -> str:
    import json  # only where it is needed

    return json.dumps(report.to_dict(), indent=2) + "\n"


_FORMS: Final[dict[str, Callable[[StressReport], str]]] = {
    ".html": StressReport.html,
    ".svg": lambda report: f"{report.svg()}\n",
    ".json": _json,
    ".txt": lambda report: report.to_text(ascii_only=False) + "\n",
}
