"""A stress test as a picture: resident and live bytes and latency over the calls, the verdict above them.

Leaves to others: drawing (`memtools.pictures`), the figures (`_stress_report`).
"""

from typing import TYPE_CHECKING, Final

from memtools.analysis import Answer
from memtools.pictures import SECONDS, Chart, Line, Panel, Tone, chart_svg, escaped, html_page
from memtools.reports import visible
from memtools.testing._stress_text import cells

if TYPE_CHECKING:
    from memtools.testing._stress_report import StressReport

_TONES: Final[dict[Answer, Tone]] = {Answer.LEAK: "bad", Answer.CLEAN: "good", Answer.INCONCLUSIVE: "doubtful"}
_MOST_NOTES: Final = 4
_NAN: Final = float("nan")
# Pages come and go a few hundred at a time; a few KiB of Python objects are noise as well.
_RESIDENT_SPAN: Final = 4 << 20
_LIVE_SPAN: Final = 16 << 10
_CELL: Final = "text-align:right;padding:.15em .8em .15em 0;border-bottom:1px solid rgba(128,128,128,.35)"


def stress_svg(report: "StressReport") -> str:
    """Return the picture."""
    return chart_svg(_chart(report))


def stress_page(report: "StressReport") -> str:
    """Return the picture, the verdict and the rounds as a page."""
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells(report))
    body = (
        f"{stress_svg(report)}<pre>{escaped(_shown(str(report.verdict)))}</pre>"
        f'<table style="border-collapse:collapse;font:13px/1.5 ui-monospace,monospace">{rows}</table>'
    )
    return html_page(f"memtools: {visible(report.tested)}, {report.answer.value}", body)


def _cell(shown: str) -> str:
    return f'<td style="{_CELL}">{escaped(shown)}</td>'


def _chart(report: "StressReport") -> Chart:
    rounds = report.rounds
    calls = 0
    places: list[float] = []
    for one in rounds:
        calls += one.calls
        places.append(float(calls))
    notes = tuple(map(visible, report.verdict.lines()))
    at_once = f", {report.at_once} at once" if report.at_once > 1 else ""
    headline = f"{report.calls:,} calls{at_once} in {report.verdict.duration_s:.1f} s, {report.verdict.meter} meter"
    return Chart(
        title=f"{visible(report.tested)}: {report.answer.value}",
        tone=_TONES[report.answer],
        notes=(headline, *notes[:_MOST_NOTES]),
        axis="calls",
        places=tuple(places),
        panels=(
            Panel(
                "Resident memory of the process",
                (Line("resident", tuple(float(one.resident_bytes) for one in rounds)),),
                least_span=_RESIDENT_SPAN,
            ),
            Panel(
                "Live bytes of the tested calls, since the first round",
                (Line("live", tuple(float(one.live_bytes) for one in rounds)),),
                least_span=_LIVE_SPAN,
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
    return "\n".join(map(visible, lines.splitlines()))
