"""The layout of a treemap, and its SVG."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from memtools.reports._treemap import squarified, treemap_svg

pytestmark = pytest.mark.once

SIZES = st.lists(st.integers(1, 10**12), min_size=1, max_size=60).map(lambda sizes: sorted(sizes, reverse=True))


@given(SIZES)
def test_areas_are_the_shares_of_the_sizes(sizes: list[int]) -> None:
    placed = squarified(sizes)

    assert len(placed) == len(sizes)
    for size, (_, _, width, height) in zip(sizes, placed, strict=True):
        assert width * height == pytest.approx(size / sum(sizes), rel=1e-6, abs=1e-9)


@given(SIZES)
def test_rectangles_are_inside_and_do_not_overlap(sizes: list[int]) -> None:
    placed = squarified(sizes)

    for left, top, width, height in placed:
        assert min(left, top) >= -1e-9
        assert max(left + width, top + height) <= 1 + 1e-6
    for place, (left, top, width, height) in enumerate(placed):
        for other_left, other_top, other_width, other_height in placed[:place]:
            across = min(left + width, other_left + other_width) - max(left, other_left)
            down = min(top + height, other_top + other_height) - max(top, other_top)
            assert across <= 1e-6 or down <= 1e-6


def test_rectangles_are_about_square() -> None:
    ratios = [width * 2.6 / height for _, _, width, height in squarified([1] * 24)]

    assert 0.5 < min(ratios) <= max(ratios) < 2


def test_names_are_escaped_and_small_cells_have_no_label() -> None:
    svg = treemap_svg("types <1>", [("<b>\x1b", 10**6, "3 objects"), ("small", 1, "1 object"), ("none", 0, "")])
    texts = [text.text for text in etree.fromstring(svg).iter("{*}text")]
    titles = [title.text for title in etree.fromstring(svg).iter("{*}title")]

    assert texts == ["<b>\\x1b", "976.6 KiB"]
    assert titles == ["types <1>", "<b>\\x1b: 976.6 KiB, 3 objects", "small: 1 B, 1 object"]


def test_map_of_nothing_is_empty() -> None:
    assert treemap_svg("types", [("none", 0, "")]) == ""
    assert "<style>" not in treemap_svg("types", [("one", 1, "")], has_style=False)
