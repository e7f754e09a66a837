"""The chart of a timeline: what is drawn, where, and in how much space."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from lxml import etree

from memtools.reports import timeline_svg
from memtools.reports._timeline_chart import duration_text, forecast_text, time_ticks, utc_text
from memtools.timelines import Timeline

pytestmark = pytest.mark.once

MIB = 2**20
BEGIN = 1_800_000_000.0
SVG = "{http://www.w3.org/2000/svg}"


def _timeline(*sizes: float, limit: float | None = None, step: float = 60.0) -> Timeline:
    """A timeline of readings `step` seconds apart, sizes in MiB."""
    timeline = Timeline(limit_bytes=None if limit is None else int(limit * MIB))
    for place, size in enumerate(sizes):
        timeline.add(int(size * MIB), at_s=BEGIN + place * step)
    return timeline


def _paths(svg: str) -> dict[str, str]:
    return {path.get("class", ""): path.get("d", "") for path in etree.fromstring(svg).iter(f"{SVG}path")}


def _texts(svg: str) -> list[str]:
    return [text.text or "" for text in etree.fromstring(svg).iter(f"{SVG}text")]


def _points(path: str) -> list[tuple[int, int]]:
    """The absolute points of a path of one run: `M0 5l1 2 3-4`."""
    numbers = [int(number) for number in re.findall(r"-?\d+", path)]
    x, y, points = 0, 0, []
    for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
        x, y = x + dx, y + dy
        points.append((x, y))
    return points


def test_chart_without_samples_is_empty() -> None:
    assert timeline_svg(Timeline()) == ""


def test_curve_goes_from_edge_to_edge_and_up() -> None:
    points = _points(_paths(timeline_svg(_timeline(10, 20, 30, 40)))["tl-mean"])

    assert [x for x, _ in points] == [0, 333, 667, 1000]
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_single_sample_is_visible() -> None:
    points = _points(_paths(timeline_svg(_timeline(10)))["tl-mean"])

    assert len(points) == 2
    assert points[0] != points[1]


def test_small_changes_do_not_begin_at_zero() -> None:
    flat, swinging = (_texts(timeline_svg(_timeline(*sizes))) for sizes in ((100, 101, 102), (10, 100)))

    assert not any(text.startswith(("16 ", "32 ", "64 ")) for text in flat)
    assert any(text.startswith("32 ") for text in swinging)


def test_many_samples_keep_their_lowest_and_highest(week: Timeline) -> None:
    paths = _paths(timeline_svg(week))
    lowest, highest = min(one.lowest_bytes for one in week.samples), max(one.highest_bytes for one in week.samples)
    band = [y for _, y in _points(paths["tl-band"].rstrip("Z"))]
    top = 512 * 1.06

    assert len(week.samples) > 10_000
    assert len(band) <= 2 * 480
    assert min(band) == round((1 - highest / MIB / top) * 1000)
    assert max(band) == round((1 - lowest / MIB / top) * 1000)


def test_gap_interrupts_the_curve() -> None:
    timeline = _timeline(*[50] * 20)
    for place in range(20):
        timeline.add(60 * MIB, at_s=BEGIN + 86_400 + place * 60)

    assert _paths(timeline_svg(timeline))["tl-mean"].count("M") == 2
    assert _paths(timeline_svg(_timeline(*[50] * 40)))["tl-mean"].count("M") == 1


def test_samples_of_changing_density_are_one_curve() -> None:
    timeline = Timeline()
    for at_s in (0.0, 2.5, 5.0, *(5.0 + number / 1000 for number in range(1, 100))):
        timeline.add(50 * MIB, at_s=BEGIN + at_s)
    for hour in range(1, 200):  # the older ones are merged into rows of a minute
        timeline.add(60 * MIB, at_s=BEGIN + 100 + hour * 20)

    assert _paths(timeline_svg(timeline))["tl-mean"].count("M") == 1


def test_floor_is_the_lowest_of_each_block() -> None:
    timeline = _timeline(*[100 if place % 10 else 40 for place in range(400)])
    floor = _paths(timeline_svg(timeline))["tl-floor"]

    assert len(set(re.findall(r"V(\d+)", floor))) == 1
    assert floor.count("H") == 40


@pytest.mark.parametrize(("limit", "is_drawn"), [(120, True), (399, True), (401, False), (None, False)])
def test_limit_far_above_does_not_flatten_the_curve(limit: float | None, is_drawn: bool) -> None:
    svg = timeline_svg(_timeline(60, 80, 100, limit=limit))

    assert ("tl-limit" in _paths(svg)) == is_drawn
    assert any(text.startswith("limit ") for text in _texts(svg)) == is_drawn


def test_thresholds_are_lines_with_their_sizes() -> None:
    svg = timeline_svg(_timeline(60, 80, 100), thresholds={"warning": 90 * MIB, "critical": 95 * MIB})

    assert {"tl-warning", "tl-critical"} <= set(_paths(svg))
    assert {"warning 90.0 MiB", "critical 95.0 MiB"} <= set(_texts(svg))


def test_labels_of_close_lines_do_not_cover_each_other() -> None:
    svg = timeline_svg(_timeline(60, 100), thresholds={"warning": 90 * MIB, "critical": int(90.5 * MIB)})
    labels = [text for text in etree.fromstring(svg).iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    ys = sorted(float(text.get("y", "")) for text in labels if (text.text or "").startswith(("warning", "critical")))

    assert ys[1] - ys[0] >= 13


class TestForecast:
    """The cone from the last floor to the limit."""

    def test_cone_reaches_the_limit_between_its_bounds(self, forecast: Callable[..., Any]) -> None:
        timeline = _timeline(*range(100, 300, 2), limit=512, step=600)
        paths = _paths(timeline_svg(timeline, forecast=forecast(18_000.0, earliest_s=13_200.0, latest_s=25_000.0)))
        numbers = [int(number) for number in re.findall(r"\d+", paths["tl-cone"])]
        (x, _), (fast, fast_y), (slow, slow_y) = zip(numbers[::2], numbers[1::2], strict=True)
        limit_y = int(re.findall(r"M0 (\d+)", paths["tl-limit"])[0])

        assert x < fast < slow
        assert fast_y == slow_y == limit_y
        assert fast < int(paths["tl-ahead"].split("L")[1].split()[0]) < slow

    def test_cone_beyond_the_edge_ends_there(self, forecast: Callable[..., Any]) -> None:
        timeline = _timeline(*range(100, 200), limit=300)
        paths = _paths(timeline_svg(timeline, forecast=forecast(1e6, earliest_s=5e5, latest_s=None, floor_bytes=None)))

        assert re.findall(r"L1000 \d+", paths["tl-cone"])
        assert paths["tl-ahead"].split("L")[1].startswith("1000 ")

    @pytest.mark.parametrize("left", [None, math.inf, 0.0, -5.0])
    def test_no_cone_without_an_end(self, left: float | None, forecast: Callable[..., Any]) -> None:
        assert "tl-cone" not in _paths(timeline_svg(_timeline(100, 200, limit=300), forecast=forecast(left)))

    def test_no_cone_without_a_limit_or_above_it(self, forecast: Callable[..., Any]) -> None:
        above = forecast(floor_bytes=301 * MIB)

        assert "tl-cone" not in _paths(timeline_svg(_timeline(100, 200), forecast=forecast()))
        assert "tl-cone" not in _paths(timeline_svg(_timeline(100, 200, limit=300), forecast=above))

    def test_sentence_has_the_lower_bound(self, forecast: Callable[..., Any]) -> None:
        told = "the limit in about 5 h, probably not before 3 h 40 min: the floor rises by 12.0 MiB an hour"

        assert forecast_text(forecast()) == told
        assert "before" not in forecast_text(forecast(earliest_s=None))
        assert forecast_text(forecast(None)) == forecast_text(forecast(math.inf)) == ""


def test_events_are_lines_with_escaped_texts(week: Timeline) -> None:
    week.mark("deploy", "long before", at_s=BEGIN - 1e6)
    svg = timeline_svg(week)
    titles = [title.text or "" for title in etree.fromstring(svg).iter(f"{SVG}title")]

    assert svg.count('class="tl-event"') == 3
    assert "2027-01-16 08:00:00 UTC deploy: the deploy of day 1 <b>" in titles
    assert "<b>" not in svg


def test_title_is_escaped_and_style_is_optional() -> None:
    svg = timeline_svg(_timeline(1, 2), title="</title><script>\x1b[31m\ud800")

    assert "<script>" not in svg
    assert "\\x1b" in svg
    assert "<style>" in svg
    assert "<style>" not in timeline_svg(_timeline(1, 2), has_style=False)
    etree.fromstring(svg)


@pytest.mark.parametrize("span", [1.0, 9.0, 61.0, 600.0, 7_200.0, 90_000.0, 604_800.0, 8e6, 1e8, 3e9])
def test_time_ticks_are_few_round_and_inside(span: float) -> None:
    ticks = time_ticks(BEGIN + 0.3, BEGIN + 0.3 + span)

    assert 1 <= len(ticks) <= 10 or span < 2
    assert all(BEGIN <= at <= BEGIN + span + 1 for at, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_times_out_of_range_have_no_ticks_and_no_text() -> None:
    assert time_ticks(1e15, 1e15 + 10) == []
    assert utc_text(1e18) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"), (12.4, "12 s"), (60, "1 min"), (90, "1 min 30 s"), (1200, "20 min"), (13_200, "3 h 40 min"),
        (90_000, "1 d 1 h"), (864_000, "10 d"), (900_000, "10 d"),
    ],
)  # fmt: skip
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
