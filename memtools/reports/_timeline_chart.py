"""The chart of a timeline as SVG: resident memory with its floor, the limit, thresholds, the forecast and events.

Horizontal positions are percentages, vertical ones pixels, and the curves are in an inner SVG that is stretched: so the
chart has any width, and its text keeps its size.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Protocol

from memtools._charts import BYTES, html_escape, tick_labels, tick_positions
from memtools._records import record
from memtools._text import printable
from memtools.units import format_size

_MAX_COLUMNS: Final = 480  # more samples are merged: the lowest, the mean and the highest of each column
_FLOOR_BLOCKS: Final = 40
_UNITS: Final = 1000  # of the inner SVG, each way
_TOP, _PLOT, _BOTTOM = 22, 230, 24  # pixels: for the labels of the top line, the curves, the times
_MIN_FLOOR_POINTS: Final = 24  # of fewer the floor is the curve itself
_MAX_OF_A_KIND: Final = 30  # events; a kind that is more frequent would hide the curve, and is left out
_MAX_LIMIT_SHARE: Final = 4.0  # a limit that is further above what is used would flatten the curve: it is not drawn
_MIN_SWING: Final = 0.35  # a curve that moves by less of its height does not begin at 0
_HEADROOM: Final = 0.06  # of the height, above the highest
_MAX_AHEAD: Final = 0.5  # of the time that was seen: as far as a forecast is drawn
_GAP: Final = 8  # times the usual distance between samples, from which on none were taken,
_MIN_GAP_S: Final = 60.0  # and at least so many seconds, because a monitor samples more often when memory is short
_STEPS_S: Final = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
    1_209_600, 2_592_000, 7_776_000, 31_536_000,
)  # fmt: skip

CHART_STYLE: Final = (
    ".tl text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#57606a}"
    ".tl-paper{fill:#fff}.tl-grid{stroke:#d0d7de}.tl-band{fill:#2563c9;fill-opacity:.22}"
    ".tl path,.tl line{vector-effect:non-scaling-stroke;fill:none}.tl path.tl-band{fill:#2563c9}"
    ".tl-mean{stroke:#2563c9;stroke-width:1.6}.tl-floor{stroke:#0f766e;stroke-width:2}"
    ".tl-limit{stroke:#c62828;stroke-width:2}.tl-critical{stroke:#c62828;stroke-dasharray:6 4}"
    ".tl-warning{stroke:#9a6700;stroke-dasharray:6 4}.tl path.tl-cone{fill:#c2410c;fill-opacity:.16}"
    ".tl-ahead{stroke:#c2410c;stroke-width:1.6;stroke-dasharray:2 3}.tl-event{stroke:#8250df;stroke-opacity:.65}"
    ".tl text.tl-label{paint-order:stroke;stroke:#fff;stroke-width:3px}.tl text.tl-title{font-weight:600;fill:#24292f}"
    "@media(prefers-color-scheme:dark){.tl text{fill:#9198a1}.tl-paper{fill:#0d1117}.tl-grid{stroke:#30363d}"
    ".tl path.tl-band{fill:#6ca4ff}.tl-mean{stroke:#6ca4ff}.tl-floor{stroke:#56d4c4}.tl-limit,.tl-critical"
    "{stroke:#ff7b72}.tl-warning{stroke:#d29922}.tl path.tl-cone{fill:#ffa657}.tl-ahead{stroke:#ffa657}"
    ".tl-event{stroke:#bc8cff}.tl text.tl-label{stroke:#0d1117}.tl text.tl-title{fill:#e6edf3}}"
)


class SampleFields(Protocol):
    """Readings that are drawn as one point: those of `memtools.timelines`."""

    @property
    def at_s(self) -> float:
        """When the first was taken, in seconds since the epoch."""
        ...

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last."""
        ...

    @property
    def count(self) -> int:
        """How many readings it stands for."""
        ...

    @property
    def lowest_bytes(self) -> int:
        """The lowest resident memory of them."""
        ...

    @property
    def mean_bytes(self) -> int:
        """The mean of them."""
        ...

    @property
    def highest_bytes(self) -> int:
        """The highest of them."""
        ...


class EventFields(Protocol):
    """Something that happened between the readings."""

    @property
    def at_s(self) -> float:
        """When, in seconds since the epoch."""
        ...

    @property
    def kind(self) -> str:
        """What kind of thing, in a word."""
        ...

    @property
    def text(self) -> str:
        """What happened, in one line."""
        ...


class TimelineFields(Protocol):
    """What a chart is drawn from."""

    @property
    def samples(self) -> "Sequence[SampleFields]":
        """The readings, oldest first."""
        ...

    @property
    def events(self) -> "Sequence[EventFields]":
        """The events, oldest first."""
        ...

    @property
    def limit_bytes(self) -> int | None:
        """What the process may use; None if unknown."""
        ...


class ForecastFields(Protocol):
    """When a limit will be reached."""

    @property
    def rate_bytes_per_s(self) -> float:
        """How fast the floor rises."""
        ...

    @property
    def seconds_to_limit(self) -> float | None:
        """Seconds until the limit; None where it is not reached."""
        ...

    @property
    def earliest_s(self) -> float | None:
        """Seconds before which it is probably not reached."""
        ...

    @property
    def latest_s(self) -> float | None:
        """Seconds after which it probably has been reached; None or infinite where that is open."""
        ...

    @property
    def floor_bytes(self) -> int | None:
        """The floor now."""
        ...


@record
class _Point:
    at_s: float
    end_s: float  # when the last of its readings was taken
    lowest: float
    mean: float
    highest: float


@record
class _Axes:
    """Where times and sizes are in the plot."""

    first_s: float
    last_s: float
    lowest: float
    highest: float

    def x(self, at_s: float) -> int:
        return round(self._x(at_s) * _UNITS)

    def percent(self, at_s: float) -> float:
        return self._x(at_s) * 100

    def y(self, size: float) -> int:
        return round(self._y(size) * _UNITS)

    def pixel(self, size: float) -> float:
        return _TOP + self._y(size) * _PLOT

    def _x(self, at_s: float) -> float:
        return (at_s - self.first_s) / (self.last_s - self.first_s)

    def _y(self, size: float) -> float:
        return 1 - (size - self.lowest) / (self.highest - self.lowest)


def timeline_svg(
    timeline: TimelineFields,
    *,
    forecast: ForecastFields | None = None,
    thresholds: Mapping[str, int] | None = None,
    title: str = "",
    width: str = "960",
    has_style: bool = True,
) -> str:
    """Return the chart; empty where there are no samples.

    Args:
        timeline: what is drawn.
        forecast: a cone from the floor of the last sample to the limit.
        thresholds: sizes in bytes by name, `"warning"` and `"critical"`, as dashed lines.
        title: shown above the curves; escaped here.
        width: of the SVG element: pixels, or a percentage.
        has_style: whether the element brings its style, as a file of its own needs it.
    """
    samples = timeline.samples
    if not samples:
        return ""
    lines = {"limit": timeline.limit_bytes, **(thresholds or {})}
    cone = _cone(samples, forecast, timeline.limit_bytes)
    axes = _axes(samples, cone, [size for size in lines.values() if size is not None])
    height = _TOP + _PLOT + _BOTTOM
    inner = [*_grid_lines(axes), *_curves(_points(samples), axes), *_flat_lines(lines, axes)]
    inner += [*_cone_paths(cone, axes), *_event_lines(timeline.events, axes)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tl" width="{width}" height="{height}" role="img">',
        f"<title>{html_escape(printable(title or 'resident memory'))}</title>",
        f"<style>{CHART_STYLE}</style>" if has_style else "",
        f'<rect class="tl-paper" width="100%" height="{height}"/>',
        f'<text class="tl-title" y="13">{html_escape(printable(title))}</text>' if title else "",
        f'<svg y="{_TOP}" width="100%" height="{_PLOT}" viewBox="0 0 {_UNITS} {_UNITS}" preserveAspectRatio="none">',
        *inner,
        "</svg>",
        *_size_labels(axes),
        *_line_labels(lines, axes),
        *_time_labels(axes, height),
        "</svg>",
    ]
    return "".join(parts)


def has_floor(samples: Sequence[SampleFields]) -> bool:
    """Return whether the chart of these samples has a line for their floor."""
    return len(samples) >= _MIN_FLOOR_POINTS


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: `3 h 40 min`, `12 s`."""
    rest = max(0, round(seconds))
    for name, size, smaller, below in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rest >= size:
            more = rest % size // below
            return f"{rest // size} {name}" + (f" {more} {smaller}" if more and rest < 10 * size else "")
    return f"{rest} s"


def forecast_text(forecast: ForecastFields) -> str:
    """Return a forecast as a sentence; empty where no limit is reached."""
    left = forecast.seconds_to_limit
    if left is None or not math.isfinite(left):
        return ""
    before = forecast.earliest_s
    least = "" if before is None else f", probably not before {duration_text(before)}"
    per_hour = format_size(forecast.rate_bytes_per_s * 3600)
    return f"the limit in about {duration_text(left)}{least}: the floor rises by {per_hour} an hour"


def utc_text(at_s: float) -> str:
    """Return a time of the epoch as `2026-11-29 04:45:44 UTC`; empty where it is out of range."""
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def _points(samples: Sequence[SampleFields]) -> list[_Point]:
    if len(samples) <= _MAX_COLUMNS:
        return [
            _Point(one.at_s, one.at_s + one.duration_s, one.lowest_bytes, one.mean_bytes, one.highest_bytes)
            for one in samples
        ]
    first_s, width_s = samples[0].at_s, (samples[-1].at_s - samples[0].at_s) / _MAX_COLUMNS or 1.0
    points: list[_Point] = []
    column: list[SampleFields] = []
    place = 0
    for one in samples:
        now = min(int((one.at_s - first_s) / width_s), _MAX_COLUMNS - 1)
        if now != place and column:
            points.append(_merged(first_s + (place + 0.5) * width_s, column))
            column = []
        place = now
        column.append(one)
    points.append(_merged(first_s + (place + 0.5) * width_s, column))
    return points


def _merged(at_s: float, column: Sequence[SampleFields]) -> _Point:
    count = sum(one.count for one in column)
    return _Point(
        at_s,
        column[-1].at_s + column[-1].duration_s,
        min(one.lowest_bytes for one in column),
        sum(one.mean_bytes * one.count for one in column) / max(count, 1),
        max(one.highest_bytes for one in column),
    )


def _axes(samples: Sequence[SampleFields], cone: "_Cone | None", lines: list[int]) -> _Axes:
    lowest, highest = min(one.lowest_bytes for one in samples), max(one.highest_bytes for one in samples)
    shown = [size for size in lines if size <= highest * _MAX_LIMIT_SHARE]
    top = max([highest, *shown])
    bottom = 0.0 if (top - lowest) >= _MIN_SWING * top else max(0.0, lowest - (top - lowest or top * 0.05))
    above = max(top + (top - bottom) * _HEADROOM, bottom + 1024)
    first_s = samples[0].at_s
    last_s = max(samples[-1].at_s, first_s + 1.0)
    if cone is not None:
        last_s += min(cone.latest_s * 1.05, (last_s - first_s) * _MAX_AHEAD)
    return _Axes(first_s, last_s, bottom, above)


@record
class _Cone:
    at_s: float
    floor: float
    limit: float
    earliest_s: float
    left_s: float
    latest_s: float


def _cone(samples: Sequence[SampleFields], forecast: ForecastFields | None, limit: int | None) -> _Cone | None:
    if forecast is None or limit is None or forecast.seconds_to_limit is None:
        return None
    left_s = forecast.seconds_to_limit
    floor = samples[-1].lowest_bytes if forecast.floor_bytes is None else forecast.floor_bytes
    if not math.isfinite(left_s) or left_s <= 0 or floor >= limit:
        return None
    earliest_s = left_s if forecast.earliest_s is None else max(min(forecast.earliest_s, left_s), 1.0)
    is_open = forecast.latest_s is None or not math.isfinite(forecast.latest_s)
    latest_s = left_s * 10 if is_open else max(forecast.latest_s or 0.0, left_s)
    return _Cone(samples[-1].at_s, floor, limit, earliest_s, left_s, latest_s)


def _cone_paths(cone: _Cone | None, axes: _Axes) -> Iterator[str]:
    if cone is None:
        return
    ahead_s = axes.last_s - cone.at_s

    def end(after_s: float) -> tuple[int, int]:
        # Where the line to the limit ends: there, or at the right edge.
        share = min(1.0, ahead_s / after_s)
        return axes.x(cone.at_s + after_s * share), axes.y(cone.floor + (cone.limit - cone.floor) * share)

    x, y = axes.x(cone.at_s), axes.y(cone.floor)
    (fast_x, fast_y), (slow_x, slow_y), (mid_x, mid_y) = end(cone.earliest_s), end(cone.latest_s), end(cone.left_s)
    corner = f"L{_UNITS} {fast_y}" if fast_x < slow_x == _UNITS and slow_y > fast_y else ""
    yield f'<path class="tl-cone" d="M{x} {y}L{fast_x} {fast_y}{corner}L{slow_x} {slow_y}Z"/>'
    yield f'<path class="tl-ahead" d="M{x} {y}L{mid_x} {mid_y}"/>'


def _curves(points: Sequence[_Point], axes: _Axes) -> Iterator[str]:
    band, mean = "", ""
    for run in _runs(points):
        if len(run) == 1:
            end_s = run[0].at_s + (axes.last_s - axes.first_s) / 200  # a short dash
            run.append(_Point(end_s, end_s, run[0].lowest, run[0].mean, run[0].highest))
        upper = [(axes.x(one.at_s), axes.y(one.highest)) for one in run]
        lower = [(axes.x(one.at_s), axes.y(one.lowest)) for one in reversed(run)]
        band += f"M{_path([*upper, *lower])}Z"
        mean += f"M{_path([(axes.x(one.at_s), axes.y(one.mean)) for one in run])}"
    yield f'<path class="tl-band" d="{band}"/><path class="tl-mean" d="{mean}"/>'
    if len(points) >= _MIN_FLOOR_POINTS:
        yield f'<path class="tl-floor" d="{_floor(points, axes)}"/>'


def _path(points: Sequence[tuple[int, int]]) -> str:
    # Relative, since the differences are short numbers.
    (x, y), *others = points
    text = [f"{x} {y}l"]
    for next_x, next_y in others:
        text.append(f"{next_x - x} {next_y - y}" if next_x >= x and len(text) == 1 else f" {next_x - x} {next_y - y}")
        x, y = next_x, next_y
    return "".join(text).replace(" -", "-")


def _runs(points: Sequence[_Point]) -> Iterator[list[_Point]]:
    """Yield the points between two gaps, in which no samples were taken."""
    distances = sorted(after.at_s - before.end_s for before, after in pairwise(points))
    longest = max(_GAP * distances[len(distances) // 2], _MIN_GAP_S) if distances else _MIN_GAP_S
    run: list[_Point] = []
    for point in points:
        if run and point.at_s - run[-1].end_s > longest:
            yield run
            run = []
        run.append(point)
    if run:
        yield run


def _floor(points: Sequence[_Point], axes: _Axes) -> str:
    """Return a line at the lowest of each block; blocks are of the same length in time, and empty ones interrupt it."""
    number = max(1, min(_FLOOR_BLOCKS, len(points) // 4))
    first_s, width_s = points[0].at_s, (points[-1].at_s - points[0].at_s) / number or 1.0
    blocks: dict[int, list[_Point]] = {}
    for point in points:
        blocks.setdefault(min(int((point.at_s - first_s) / width_s), number - 1), []).append(point)
    text = ""
    for place, block in blocks.items():
        after = blocks.get(place + 1)
        end_s = max(block[-1].at_s, block[-1].end_s) if after is None else after[0].at_s
        y = axes.y(min(one.lowest for one in block))
        text += f"V{y}" if place - 1 in blocks else f"M{axes.x(block[0].at_s)} {y}"
        text += f"H{min(axes.x(end_s), _UNITS)}"
    return text


def _grid_lines(axes: _Axes) -> Iterator[str]:
    lines = "".join(f"M0 {axes.y(size)}H{_UNITS}" for size in _size_ticks(axes))
    yield f'<path class="tl-grid" d="{lines}"/>'


def _flat_lines(lines: Mapping[str, int | None], axes: _Axes) -> Iterator[str]:
    for name, size in lines.items():
        if size is not None and axes.lowest <= size <= axes.highest:
            kind = name if name in ("limit", "critical") else "warning"
            yield f'<path class="tl-{kind}" d="M0 {axes.y(size)}H{_UNITS}"/>'


def _event_lines(events: Sequence[EventFields], axes: _Axes) -> Iterator[str]:
    frequent = Counter(event.kind for event in events)
    for event in events:
        if frequent[event.kind] > _MAX_OF_A_KIND or not axes.first_s <= event.at_s <= axes.last_s:
            continue
        x = axes.x(event.at_s)
        text = html_escape(printable(f"{event.kind}: {event.text}", 200))
        yield f'<path class="tl-event" d="M{x} 0V{_UNITS}"><title>{utc_text(event.at_s)} {text}</title></path>'


def _size_ticks(axes: _Axes) -> list[float]:
    ticks = tick_positions(axes.lowest, axes.highest, BYTES, limit=6)
    return [size for size in ticks if axes.lowest < size < axes.highest]


def _size_labels(axes: _Axes) -> Iterator[str]:
    ticks = _size_ticks(axes)
    for size, text in zip(ticks, tick_labels(ticks, BYTES) if ticks else (), strict=True):
        yield f'<text class="tl-label" x="4" y="{axes.pixel(size) - 4:.0f}">{text}</text>'


def _line_labels(lines: Mapping[str, int | None], axes: _Axes) -> Iterator[str]:
    lowest_y = -math.inf
    shown = sorted(
        ((size, name) for name, size in lines.items() if size is not None and axes.lowest <= size <= axes.highest),
        reverse=True,
    )
    for size, name in shown:
        y = max(axes.pixel(size) - 4, lowest_y + 13)  # not over the label above
        lowest_y = y
        text = html_escape(printable(f"{name} {format_size(size)}", 60))
        yield f'<text class="tl-label" x="100%" dx="-4" y="{y:.0f}" text-anchor="end">{text}</text>'


def _time_labels(axes: _Axes, height: int) -> Iterator[str]:
    for number, (at_s, text) in enumerate(time_ticks(axes.first_s, axes.last_s)):
        percent = axes.percent(at_s)
        if not 2 <= percent <= 98:
            continue
        anchor = "start" if percent < 6 else "end" if percent > 94 else "middle"
        every_other = ' class="tl-odd"' if number % 2 else ""
        yield f'<text{every_other} x="{percent:.2f}%" y="{height - 7}" text-anchor="{anchor}">{text}</text>'


def time_ticks(first_s: float, last_s: float) -> list[tuple[float, str]]:
    """Return at most ten round times between two times of the epoch, with their labels, in UTC."""
    span_s = last_s - first_s
    step_s = next((step for step in _STEPS_S if span_s / step <= 8), math.ceil(span_s / 8))
    form = "%H:%M:%S" if step_s < 60 else "%H:%M" if step_s < 86_400 else "%b %d" if step_s < 31_536_000 else "%Y"
    ticks: list[tuple[float, str]] = []
    at_s = math.ceil(first_s / step_s) * step_s
    while at_s <= last_s:
        moment: Any = datetime(1970, 1, 1, tzinfo=UTC)
        try:
            moment += timedelta(seconds=at_s)
        except OverflowError:
            return ticks
        is_day = form == "%H:%M" and moment.hour == moment.minute == 0
        ticks.append((at_s, moment.strftime("%b %d" if is_day else form)))
        at_s += step_s
    return ticks
