"""Line charts as SVG, sparklines as text, and an HTML page around them.

A chart is one SVG element with its styles ticks, for light and dark colour schemes. It draws its own background,
because the theme of a notebook may differ from that of the system.
"""

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, Literal, TypeAlias

from memtools._records import record

_MAX_DECIMALS: Final = 4

_XML: Final = "http://www.w3.org/2000/svg"
_WIDTH: Final = 820
_LEFT, _RIGHT = 84, 150  # margins: for the tick labels, for the names of the lines
_PANEL: Final = 130
_GAP: Final = 46  # between two panels, for the title of the lower one
_LINE: Final = 18  # from one line of text to the next
_MAX_LENGTH: Final = 120  # characters of a line of text
_MAX_DOTS: Final = 120  # more dots would look like a thick line

# Plain rules instead of CSS variables, which converters of SVG outside of browsers do not support.
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

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS: Final = "_.-:=+*#"

# Characters that XML 1.0 cannot represent; with one of them no browser shows the chart.
_INVALID_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Tone: TypeAlias = Literal["plain", "good", "bad", "doubtful"]


@record
class Scale:
    """A unit and its multiples.

    Attributes:
        units: names and factors, the smallest first.
        steps: ticks are at multiples of one of these, times a power of `base`.
        base: the base of these powers.
    """

    units: tuple[tuple[str, float], ...]
    steps: tuple[float, ...]
    base: float


BYTES: Final = Scale((("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40)), (1.0,), 2.0)
SECONDS: Final = Scale((("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)), (1.0, 2.0, 5.0), 10.0)
COUNT: Final = Scale((("", 1.0),), (1.0, 2.0, 5.0), 10.0)


def tick_positions(low: float, high: float, scale: Scale, *, limit: int = 5) -> tuple[float, ...]:
    """Return at most about `limit` round values from below `low` to above `high`."""
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
    """Return the labels of the ticks of an axis, all in one unit."""
    largest = max(map(abs, values))
    name, factor = next(((name, factor) for name, factor in reversed(scale.units) if largest >= factor), scale.units[0])
    step = (values[1] - values[0]) / factor if len(values) > 1 else 1.0
    decimals = next((number for number in range(_MAX_DECIMALS) if _is_whole(step * 10**number)), _MAX_DECIMALS)
    decimals = min(decimals, max(0, math.ceil(-math.log10(step)))) if step < 1 else decimals
    return [f"{value / factor:,.{decimals}f} {name}".rstrip() for value in values]


def _step(span: float, scale: Scale, limit: int) -> float:
    wanted = max(span, 1e-12) / max(limit - 1, 1)
    power = scale.base ** math.floor(math.log(wanted, scale.base))
    candidates = [power * step for step in (*scale.steps, scale.base)]
    return next(step for step in (*candidates, power * scale.base * scale.base) if step >= wanted * (1 - 1e-9))


def _decimals(step: float, is_smallest: bool) -> int:
    if is_smallest and step == 0:
        return 0
    return 1 if step == 0 or step >= 0.1 else min(_MAX_DECIMALS, math.ceil(-math.log10(step)))


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


@record
class Line:
    """One line of a panel.

    Attributes:
        name: shown beside its last point.
        values: one for each position of the chart, in the unit of the panel's scale; NaN for a missing value.
    """

    name: str
    values: tuple[float, ...]


@record
class Panel:
    """One plot of a chart, with its own vertical axis.

    Attributes:
        title: shown above it.
        lines: the lines.
        scale: the unit of its values.
        min_span: the smallest difference between bottom and top of the axis, so that noise does not look like growth.
        from_zero: whether the axis starts at 0.
    """

    title: str
    lines: tuple[Line, ...]
    scale: Scale = BYTES
    min_span: float = 0.0
    from_zero: bool = False


@record
class Chart:
    """Panels above each other over one horizontal axis.

    Attributes:
        title: shown above the panels.
        tone: the colour of the title.
        notes: lines below the title.
        axis: the title of the horizontal axis.
        positions: of the points on the horizontal axis, in ascending order.
        panels: from top to bottom.
    """

    title: str
    tone: Tone
    notes: tuple[str, ...]
    axis: str
    positions: tuple[float, ...]
    panels: tuple[Panel, ...]


def html_escape(text: str) -> str:
    """Return `text` escaped for HTML and XML; characters that XML cannot represent are replaced by U+FFFD."""
    return escape(_INVALID_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def html_page(title: str, body: str) -> str:
    """Return an HTML page without scripts and external resources; `body` is HTML, `title` is text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">'
        f'<title>{html_escape(title)}</title></head><body style="margin:2em">{body}</body></html>\n'
    )


def sparkline(values: Sequence[float], *, width: int = 40, ascii_only: bool = False, min_span: float = 0.0) -> str:
    """Return a line of block characters: one for each value, or for the maximum of several if there are too many.

    Args:
        values: figures in any unit; without values the text is empty.
        width: the maximum number of characters.
        ascii_only: use ASCII characters, which every terminal has.
        min_span: the smallest difference of values that uses all characters.
    """
    if not values:
        return ""
    heights = _columns(values, max(width, 1))
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    low = min(heights)
    span = max(max(heights) - low, min_span)
    if span <= 0:
        return blocks[0] * len(heights)
    return "".join(blocks[min(int((height - low) / span * len(blocks)), len(blocks) - 1)] for height in heights)


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = len(values)
    if count <= width:
        return list(values)
    return [max(values[column * count // width : (column + 1) * count // width]) for column in range(width)]


def chart_svg(chart: Chart) -> str:
    """Return `chart` as one SVG element. Texts are escaped, and truncated if they are too long."""
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
        plot = _Plot(panel, chart.positions, left, right, head + (_PANEL + _GAP) * number + _GAP)
        parts += plot.draw()
    bottom = head + (_PANEL + _GAP) * len(chart.panels)
    parts += _horizontal_axis(chart, left, right, bottom)
    return "".join([*parts, "</svg>"])


class _Plot:
    """One panel at its position in the chart."""

    def __init__(self, panel: Panel, positions: Sequence[float], left: float, right: float, top: float) -> None:
        self._panel = panel
        self._positions = positions
        self._left, self._right = left, right
        self._top = top
        low, high = _vertical_range(panel)
        self._ticks = tick_positions(low, high, panel.scale)
        self._low, self._high = self._ticks[0], self._ticks[-1]

    def draw(self) -> Iterator[str]:
        yield _text(_LEFT, self._top - 12, self._panel.title, "mt-head mt-text")
        for value, text in zip(self._ticks, tick_labels(self._ticks, self._panel.scale), strict=True):
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
        if len(points) > _MAX_DOTS:
            return
        for x, y, value in points:
            tooltip = html_escape(f"{line.name}: {tick_label(value, self._panel.scale)}")
            yield f'<circle class="mt-d{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{tooltip}</title></circle>'

    def _names(self) -> Iterator[str]:
        # From top to bottom: each name at the end of its line, or below the name above it.
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
        pairs = zip(self._positions, line.values, strict=True)
        return [
            (_x(position, self._left, self._right), self._y(value), value)
            for position, value in pairs
            if value == value
        ]

    def _y(self, value: float) -> float:
        return self._top + _PANEL * (1 - (value - self._low) / (self._high - self._low))


def _horizontal_axis(chart: Chart, left: float, right: float, bottom: float) -> Iterator[str]:
    ticks = [tick for tick in tick_positions(left, right, COUNT, limit=7) if left <= tick <= right]
    for tick, text in zip(ticks, tick_labels(ticks, COUNT), strict=True):
        yield _text(_x(tick, left, right), bottom + 18, text, "mt-faint", anchor="middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, chart.axis, "mt-faint", anchor="middle")


def _vertical_range(panel: Panel) -> tuple[float, float]:
    values = [value for line in panel.lines for value in line.values if value == value] or [0.0]
    low, high = min(values), max(values)
    if panel.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    missing = max(panel.min_span, 1e-9) - (high - low)
    if missing <= 0:
        return low, high
    # A flat line is in the middle of its panel, unless the axis starts at zero.
    return (low, high + missing) if panel.from_zero else (low - missing / 2, high + missing / 2)


def _horizontal_range(positions: Sequence[float]) -> tuple[float, float]:
    if not positions:
        return 0.0, 1.0
    return positions[0], max(positions[-1], positions[0] + 1e-9)


def _x(position: float, left: float, right: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (position - left) / (right - left)


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    shown = text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html_escape(shown)}</text>'
