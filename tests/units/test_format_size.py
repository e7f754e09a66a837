"""Formatting sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.units import format_size, parse_size


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (3, "3 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-1536, "-1.5 KiB"),
        (512 * 2**20, "512.0 MiB"),
        (2**50, "1024.0 TiB"),
        (0.4, "0 B"),
        (-0.4, "0 B"),
    ],
)
def test_size_is_shown_in_the_largest_fitting_unit(size_bytes: float, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(1023.6, "1.0 KiB"), (2**20 - 1, "1.0 MiB"), (-(2**20 - 1), "-1.0 MiB"), (2**30 - 1, "1.0 GiB")],
)
def test_size_that_rounds_up_to_the_next_unit_is_shown_in_it(size_bytes: float, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(min_value=0, max_value=2**50))
def test_formatted_size_can_be_parsed_within_rounding(size_bytes: int) -> None:
    shown = format_size(size_bytes)

    assert abs(parse_size(shown) - size_bytes) <= size_bytes * 0.051 + 1


@given(st.integers(min_value=1, max_value=2**60))
def test_negative_size_is_the_positive_one_with_a_sign(size_bytes: int) -> None:
    assert format_size(-size_bytes) == f"-{format_size(size_bytes)}"
