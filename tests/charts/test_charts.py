"""Charts as SVG, ticks of axes, sparklines."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools._charts import (
    BYTES,
    SECONDS,
    Chart,
    Line,
    Panel,
    chart_svg,
    html_page,
    sparkline,
    tick_labels,
    tick_positions,
)

_SVG = "{http://www.w3.org/2000/svg}"


def _chart(values: tuple[float, ...], *, title: str = "refresh: clean", name: str = "resident") -> Chart:
    positions = tuple(map(float, range(len(values))))
    panel = Panel("Resident", (Line(name, values),), min_span=1 << 20)
    return Chart(title, "good", ("a note",), "calls", positions, (panel,))


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def test_chart_has_title_notes_and_names_of_its_lines() -> None:
    texts = _texts(chart_svg(_chart((50 * 2**20, 57 * 2**20))))

    assert texts[:2] == ["refresh: clean", "a note"]
    assert "resident 57.0 MiB" in texts
    assert {"calls", "Resident"} <= set(texts)


def test_points_are_inside_the_chart_and_rise_with_the_values() -> None:
    root = ElementTree.fromstring(chart_svg(_chart((1e6, 5e6, 9e6))))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{_SVG}circle")]

    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_missing_values_are_not_drawn() -> None:
    root = ElementTree.fromstring(chart_svg(_chart((math.nan, 2.0, 3.0))))

    assert len(list(root.iter(f"{_SVG}circle"))) == 2


@pytest.mark.parametrize("values", [(), (0.0,), (7.0, 7.0, 7.0), (math.nan,), (-5.0, 5.0), (1e-9, 1e15)])
def test_extreme_values_are_drawn(values: tuple[float, ...]) -> None:
    ElementTree.fromstring(chart_svg(_chart(values)))


@given(st.text(), st.text(), st.lists(st.floats(-1e18, 1e18), max_size=30))
def test_any_text_and_values_make_well_formed_svg(title: str, name: str, values: list[float]) -> None:
    svg = chart_svg(_chart(tuple(values), title=title, name=name))

    ElementTree.fromstring(svg)


def test_page_has_no_scripts_and_no_external_resources() -> None:
    page = html_page("<script>alert(1)</script>", chart_svg(_chart((1.0, 2.0), title='<img src="http://x">')))

    assert "<script" not in page
    assert "<img" not in page
    assert set(re.findall(r"https?://[^\"' ]+", page.replace("&quot;", '"'))) == {
        "http://www.w3.org/2000/svg",
        "http://x",
    }
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?http", page)


def test_chart_has_light_and_dark_colours() -> None:
    assert "prefers-color-scheme:dark" in chart_svg(_chart((1.0, 2.0)))


@given(st.floats(0, 1e15), st.floats(1, 1e15))
def test_ticks_enclose_the_range_and_are_few(low: float, span: float) -> None:
    found = tick_positions(low, low + span, BYTES)

    assert found[0] <= low
    assert found[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(found) <= 12


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 4 * 2**20, ["0 MiB", "1 MiB", "2 MiB", "3 MiB", "4 MiB"]),
        (56.9 * 2**20, 57.1 * 2**20, ["56.88 MiB", "56.94 MiB", "57.00 MiB", "57.06 MiB", "57.12 MiB"]),
        (0, 16, ["0 B", "4 B", "8 B", "12 B", "16 B"]),
    ],
)
def test_ticks_of_bytes_are_multiples_of_powers_of_two(low: float, high: float, labels: list[str]) -> None:
    shown = tick_labels(tick_positions(low, high, BYTES), BYTES)

    assert len(set(shown)) == len(shown)
    assert shown == labels


def test_ticks_of_seconds_are_decimal() -> None:
    assert tick_labels(tick_positions(0, 0.004, SECONDS), SECONDS) == ["0 ms", "1 ms", "2 ms", "3 ms", "4 ms"]


def test_sparkline_rises_and_falls_with_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 7, 0], ascii_only=True) == "_#_"


def test_sparkline_without_values_is_empty_and_of_noise_flat() -> None:
    assert sparkline([]) == ""
    assert sparkline([5, 5, 5]) == "▁▁▁"
    assert sparkline([5, 6, 5], min_span=1000) == "▁▁▁"


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=500), st.integers(1, 80))
def test_sparkline_fits_into_its_width(values: list[float], width: int) -> None:
    drawn = sparkline(values, width=width)

    assert len(drawn) == min(len(values), width)
    assert drawn.isprintable()
