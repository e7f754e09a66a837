"""The lines that a test run ends with: what was measured, test by test."""

from collections.abc import Mapping, Sequence
from typing import Any

from memtools.units import format_size

Figures = Mapping[str, Any]  # Any: what JSON can hold


def summary_lines(results: Sequence[Figures]) -> list[str]:
    """Return a table, the largest peak first, parts of a test below it."""
    rows = [row for figures in sorted(results, key=_peak, reverse=True) for row in _rows(figures)]
    head = ("test", "peak", "kept", "per run", "runs")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]


def _rows(figures: Figures) -> list[tuple[str, ...]]:
    growth = figures.get("growth_per_run_bytes")
    verdict = f"{format_size(growth)} {figures['answer']}" if growth is not None else ""
    rows: list[tuple[str, ...]] = [
        (str(figures["test"]), _size(figures, "peak_bytes"), _size(figures, "retained_bytes"), verdict,
         str(figures.get("runs", "")))
    ]  # fmt: skip
    rows += [
        (f"  {part['name']}", _size(part, "peak_bytes"), _size(part, "retained_bytes"), "", "")
        for part in figures.get("parts", ())
    ]
    return rows


def _size(figures: Figures, name: str) -> str:
    return format_size(figures[name]) if name in figures else ""


def _peak(figures: Figures) -> int:
    return int(figures.get("peak_bytes", 0))
