"""Draw a chart as SVG: one element that can stand in a page or in a file, styles inside, light and dark.

Covers: axes, lines, points that say their value when they are pointed at, names beside the lines. It brings its own
paper: the theme of a notebook need not be that of the reader's system.
Leaves to others: what is drawn (`_chart`), the marks of an axis (`_scale`).
"""

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, Literal, TypeAlias

from memtools._records import record

# Where the marks of an axis stand, and what is written beside them.

_MOST_DECIMALS: Final = 4


@record
class Scale:
    """A unit and its multiples.

    Attributes:
        units: names and factors, the smallest first.
        steps: what a mark may be a multiple of, within one power of `base`.
        base: the power by which the steps repeat.
    """

    units: tuple[tuple[str, float], ...]
    steps: tuple[float, ...]
    base: float


BYTES: Final = Scale((("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40)), (1.0,), 2.0)
SECONDS: Final = Scale((("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)), (1.0, 2.0, 5.0), 10.0)
COUNT: Final = Scale((("", 1.0),), (1.0, 2.0, 5.0), 10.0)


def tick_positions(low: float, high: float, scale: Scale, *, limit: int = 5) -> tuple[float, ...]:
    """Return at most about `most` round values from below `low` to above `high`."""
    step = _step(high - low, scale, limit)
    first, last = math.floor(low / step), math.ceil(high / step)
    return tuple(number * step for number in range(first, last + 1))


def tick_label(value: float, scale: Scale, *, step: float = 0.0) -> str:
    """Return `value` with its unit, with as many decimals as tell it from `value + step`."""
    name, factor = scale.units[0]
    for name_above, factor_above in scale.units:
        if abs(value) >= factor_above:
            name, factor = name_above, factor_above
    return f"{value / factor:,.{_decimals(step / factor, factor == scale.units[0][1])}f} {name}".rstrip()


def tick_labels(values: Sequence[float], scale: Scale) -> list[str]:
    """Return what stands beside the marks of an axis, all in one unit."""
    largest = max(map(abs, values))
    name, factor = next(((name, factor) for name, factor in reversed(scale.units) if largest >= factor), scale.units[0])
    step = (values[1] - values[0]) / factor if len(values) > 1 else 1.0
    decimals = next((number for number in range(_MOST_DECIMALS) if _is_whole(step * 10**number)), _MOST_DECIMALS)
    decimals = min(decimals, max(0, math.ceil(-math.log10(step)))) if step < 1 else decimals
    return [f"{value / factor:,.{decimals}f} {name}".rstrip() for value in values]


def _step(span: float, scale: Scale, most: int) -> float:
    wanted = max(span, 1e-12) / max(most - 1, 1)
    power = scale.base ** math.floor(math.log(wanted, scale.base))
    candidates = [power * step for step in (*scale.steps, scale.base)]
    return next(step for step in (*candidates, power * scale.base * scale.base) if step >= wanted * (1 - 1e-9))


def _decimals(step: float, is_smallest: bool) -> int:
    if is_smallest and step == 0:
        return 0
    return 1 if step == 0 or step >= 0.1 else min(_MOST_DECIMALS, math.ceil(-math.log10(step)))


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


# What a chart shows: panels above each other over one axis.
#
# Leaves to others: how it is drawn (`_svg`), where the marks of an axis stand (`_scale`).

Tone: TypeAlias = Literal["plain", "good", "bad", "doubtful"]


@record
class Line:
    """One line of a panel.

    Attributes:
        name: what it is called beside its last point.
        values: one for each place of the chart, in the unit of the panel's scale; NaN where there is none.
    """

    name: str
    values: tuple[float, ...]


@record
class Panel:
    """One field of a chart, with an upright axis of its own.

    Attributes:
        title: what stands above it.
        lines: what is drawn.
        scale: the unit of its values.
        least_span: the least difference that the axis shows from bottom to top: noise shall not look like growth.
        from_zero: whether the axis begins at 0.
    """

    title: str
    lines: tuple[Line, ...]
    scale: Scale = BYTES
    min_span: float = 0.0
    from_zero: bool = False


@record
class Chart:
    """Panels above each other.

    Attributes:
        title: what stands above them.
        tone: how the title is to be taken.
        notes: lines below the title.
        axis: what the places count.
        places: where the points stand on the level axis, rising.
        panels: from top to bottom.
    """

    title: str
    tone: Tone
    notes: tuple[str, ...]
    axis: str
    positions: tuple[float, ...]
    panels: tuple[Panel, ...]


# Text that may stand in HTML and SVG, whoever wrote it.

# What XML 1.0 has no way to write: one of them, and no browser shows the picture.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def html_escape(text: str) -> str:
    """Return `text` for HTML and XML; what cannot be written there becomes a question mark."""
    return escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text))


# A page around a picture or a table: one file, no script, nothing from the network, in the reader's colours.


def html_page(title: str, body: str) -> str:
    """Return `body`, which is HTML already, as a page of its own; `title` is text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">'
        f'<title>{html_escape(title)}</title></head><body style="margin:2em">{body}</body></html>\n'
    )


# A row of characters that goes up and down as figures do.

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN: Final = "_.-:=+*#"


def sparkline(values: Sequence[float], *, width: int = 40, ascii_only: bool = False, min_span: float = 0.0) -> str:
    """Return one character for each value, or for the highest of several where there are more than `width`.

    Args:
        values: figures in any unit; none gives an empty text.
        width: the most characters.
        ascii_only: use characters that every terminal has.
        least_span: the least difference between the lowest and the highest character.
    """
    if not values:
        return ""
    heights = _columns(values, max(width, 1))
    marks = _PLAIN if ascii_only else _BLOCKS
    low = min(heights)
    span = max(max(heights) - low, min_span)
    if span <= 0:
        return marks[0] * len(heights)
    return "".join(marks[min(int((height - low) / span * len(marks)), len(marks) - 1)] for height in heights)


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = len(values)
    if count <= width:
        return list(values)
    return [max(values[place * count // width : (place + 1) * count // width]) for place in range(width)]


_XML: Final = "http://www.w3.org/2000/svg"
_WIDTH: Final = 820
_LEFT, _RIGHT = 84, 150  # room for the marks' labels, for the lines' names
_PANEL: Final = 130
_GAP: Final = 46  # between two panels, for the title of the lower
_LINE: Final = 18  # from one line of text to the next
_LONGEST: Final = 120  # characters of a line of text
_MOST_DOTS: Final = 120  # more of them are a thick line

# Plain rules instead of variables: what turns SVG into pictures outside browsers knows no variables.
_STYLE: Final = """
.mt{font:12px/1.4 system-ui,-apple-system,"Segoe UI",sans-serif}
.mt-paper{fill:#fff}.mt-text{fill:#24292f}.mt-faint{fill:#656d76}.mt-grid{stroke:#d0d7de;stroke-width:1}
.mt-title{font-size:16px;font-weight:600}.mt-head{font-weight:600}
.mt-good{fill:#1a7f37}.mt-bad{fill:#c62828}.mt-doubtful{fill:#9a6700}
.mt-line{fill:none;stroke-width:2;stroke-linejoin:round}
.mt-l0{stroke:#2563c9}.mt-d0{fill:#2563c9}.mt-l1{stroke:#c2410c}.mt-d1{fill:#c2410c}.mt-l2{stroke:#0f766e}.mt-d2{fill:#0f766e}
@media (prefers-color-scheme:dark){
.mt-paper{fill:#0d1117}.mt-text{fill:#e6edf3}.mt-faint{fill:#9198a1}.mt-grid{stroke:#30363d}
.mt-good{fill:#3fb950}.mt-bad{fill:#ff7b72}.mt-doubtful{fill:#d29922}
.mt-l0{stroke:#6ca4ff}.mt-d0{fill:#6ca4ff}.mt-l1{stroke:#ffa657}.mt-d1{fill:#ffa657}.mt-l2{stroke:#56d4c4}.mt-d2{fill:#56d4c4}
}""".replace("\n", "")
_COLOURS: Final = 3


def chart_svg(chart: Chart) -> str:
    """Return `chart` as one SVG element. Names in it are escaped, and cut where they are too long for the picture."""
    head = 34 + _LINE * len(chart.notes)
    height = head + (_PANEL + _GAP) * len(chart.panels) + 44
    parts = [
        f'<svg xmlns="{_XML}" class="mt" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        f"<title>{html_escape(chart.title)}</title><style>{_STYLE}</style>",
        f'<rect class="mt-paper" width="{_WIDTH}" height="{height}"/>',
        _text(16, 28, chart.title, f"mt-title {'mt-text' if chart.tone == 'plain' else f'mt-{chart.tone}'}"),
        *(_text(16, 28 + _LINE * (number + 1), note, "mt-faint") for number, note in enumerate(chart.notes)),
    ]
    left, right = _horizontal_range(chart.positions)
    for number, panel in enumerate(chart.panels):
        field = _Plot(panel, chart.positions, left, right, head + (_PANEL + _GAP) * number + _GAP)
        parts += field.draw()
    bottom = head + (_PANEL + _GAP) * len(chart.panels)
    parts += _horizontal_axis(chart, left, right, bottom)
    return "".join([*parts, "</svg>"])


class _Plot:
    """One panel at its place in the picture."""

    def __init__(self, panel: Panel, places: Sequence[float], left: float, right: float, top: float) -> None:
        self._panel = panel
        self._places = places
        self._left, self._right = left, right
        self._top = top
        low, high = _vertical_range(panel)
        self._marks = tick_positions(low, high, panel.scale)
        self._low, self._high = self._marks[0], self._marks[-1]

    def draw(self) -> Iterator[str]:
        yield _text(_LEFT, self._top - 12, self._panel.title, "mt-head mt-text")
        for value, text in zip(self._marks, tick_labels(self._marks, self._panel.scale), strict=True):
            y = self._y(value)
            yield f'<path class="mt-grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            yield _text(_LEFT - 8, y + 4, text, "mt-faint", anchor="end")
        for number, line in enumerate(self._panel.lines):
            yield from self._line(line, number % _COLOURS)
        yield from self._names()

    def _line(self, line: Line, colour: int) -> Iterator[str]:
        points = self._points(line)
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        yield f'<polyline class="mt-line mt-l{colour}" points="{pairs}"/>'
        if len(points) > _MOST_DOTS:
            return
        for x, y, value in points:
            says = html_escape(f"{line.name}: {tick_label(value, self._panel.scale)}")
            yield f'<circle class="mt-d{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{says}</title></circle>'

    def _names(self) -> Iterator[str]:
        # From the highest line down, each at its line's end or below the name above it.
        ends = [
            (points[-1][1], number, f"{line.name} {tick_label(points[-1][2], self._panel.scale)}")
            for number, line in enumerate(self._panel.lines)
            if (points := self._points(line))
        ]
        lowest = -math.inf
        for wanted, number, text in sorted(ends):
            y = max(wanted + 4, lowest + _LINE - 3)
            lowest = y
            yield _text(_WIDTH - _RIGHT + 10, y, text, f"mt-d{number % _COLOURS}")

    def _points(self, line: Line) -> list[tuple[float, float, float]]:
        pairs = zip(self._places, line.values, strict=True)
        return [(_x(place, self._left, self._right), self._y(value), value) for place, value in pairs if value == value]

    def _y(self, value: float) -> float:
        return self._top + _PANEL * (1 - (value - self._low) / (self._high - self._low))


def _horizontal_axis(chart: Chart, left: float, right: float, bottom: float) -> Iterator[str]:
    inside = [mark for mark in tick_positions(left, right, COUNT, limit=7) if left <= mark <= right]
    for mark, text in zip(inside, tick_labels(inside, COUNT), strict=True):
        yield _text(_x(mark, left, right), bottom + 18, text, "mt-faint", anchor="middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, chart.axis, "mt-faint", anchor="middle")


def _vertical_range(panel: Panel) -> tuple[float, float]:
    values = [value for line in panel.lines for value in line.values if value == value] or [0.0]
    low, high = min(values), max(values)
    if panel.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    missing = max(panel.min_span, 1e-9) - (high - low)
    if missing <= 0:
        return low, high
    # A flat line stands in the middle of its field, unless that begins at zero.
    return (low, high + missing) if panel.from_zero else (low - missing / 2, high + missing / 2)


def _horizontal_range(places: Sequence[float]) -> tuple[float, float]:
    if not places:
        return 0.0, 1.0
    return places[0], max(places[-1], places[0] + 1e-9)


def _x(place: float, left: float, right: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (place - left) / (right - left)


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html_escape(shown)}</text>'
