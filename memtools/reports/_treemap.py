"""A treemap as SVG: rectangles whose areas are sizes, as square as they can be.

The layout is that of "Squarified Treemaps" (Bruls, Huizing and van Wijk, 2000). Positions are percentages, so that the
map has any width and its text keeps its size.
"""

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from memtools._charts import html_escape
from memtools._text import printable
from memtools.units import format_size

_HEIGHT: Final = 300  # pixels
_RATIO: Final = 2.6  # width to height for which the rectangles are made square
_COLOURS: Final = 6
_MIN_LABELLED: Final = 0.012  # of the area

TREEMAP_STYLE: Final = (
    ".tm text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#fff}"
    ".tm rect{stroke:#fff;stroke-width:1.5}.tm0{fill:#1f5bb5}.tm1{fill:#0b6b62}.tm2{fill:#a33a0c}.tm3{fill:#6b3fb5}"
    ".tm4{fill:#8a5a00}.tm5{fill:#4a5563}"
    "@media(prefers-color-scheme:dark){.tm rect{stroke:#0d1117}}"
)

Rectangle: TypeAlias = tuple[float, float, float, float]


def squarified(sizes: Sequence[float]) -> list[Rectangle]:
    """Return a rectangle (left, top, width, height; shares of the whole) for each size, largest first.

    Args:
        sizes: above 0, in descending order.
    """
    total = sum(sizes)
    areas = [size / total * _RATIO for size in sizes]
    left, top, width, height = 0.0, 0.0, _RATIO, 1.0
    placed: list[Rectangle] = []
    while areas:
        short = min(width, height)
        taken = _row_length(areas, short)
        row, areas = areas[:taken], areas[taken:]
        thickness = sum(row) / short
        at = 0.0
        for area in row:
            length = area / thickness
            placed.append(
                (left, top + at, thickness, length) if width >= height else (left + at, top, length, thickness)
            )
            at += length
        if width >= height:
            left, width = left + thickness, max(width - thickness, 1e-12)
        else:
            top, height = top + thickness, max(height - thickness, 1e-12)
    return [(x / _RATIO, y, wide / _RATIO, high) for x, y, wide, high in placed]


def _row_length(areas: Sequence[float], short: float) -> int:
    """Return how many of the next areas share a row: as long as its worst rectangle becomes no longer."""
    best, total = float("inf"), 0.0
    for count, area in enumerate(areas):
        total += area
        worst = max(short**2 * areas[0] / total**2, total**2 / (short**2 * area))
        if worst > best:
            return count
        best = worst
    return len(areas)


def treemap_svg(
    title: str, entries: Sequence[tuple[str, int, str]], *, width: str = "960", has_style: bool = True
) -> str:
    """Return the map; empty without entries above 0.

    Args:
        title: for readers that do not see it.
        entries: name, size in bytes, and a further text for the tooltip; escaped here.
        width: of the SVG element: pixels, or a percentage.
        has_style: whether the element brings its style, as a file of its own needs it.
    """
    known = sorted((entry for entry in entries if entry[1] > 0), key=lambda entry: -entry[1])
    if not known:
        return ""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tm" width="{width}" height="{_HEIGHT}" role="img">'
    style = f"<style>{TREEMAP_STYLE}</style>" if has_style else ""
    return "".join([head, f"<title>{html_escape(printable(title))}</title>", style, *_cells(known), "</svg>"])


def _cells(entries: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    for number, (entry, place) in enumerate(zip(entries, squarified([entry[1] for entry in entries]), strict=True)):
        name, size, more = entry
        left, top, wide, high = (100 * share for share in place)
        told = html_escape(printable(f"{name}: {format_size(size)}, {more}", 200))
        yield (
            f'<svg x="{left:.2f}%" y="{top:.2f}%" width="{wide:.2f}%" height="{high:.2f}%">'
            f'<rect class="tm{number % _COLOURS}" width="100%" height="100%"><title>{told}</title></rect>'
        )
        if place[2] * place[3] >= _MIN_LABELLED:
            yield f'<text x="6" y="16">{html_escape(printable(name, 60))}</text>'
            yield f'<text x="6" y="31">{format_size(size)}</text>' if place[3] * _HEIGHT > 36 else ""
        yield "</svg>"
