"""Parsing sizes, counts, seconds and choices."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.errors import ConfigError
from memtools.units import parse_choice, parse_count, parse_seconds, parse_size

FACTORS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


@pytest.mark.parametrize("unit", FACTORS)
def test_units_have_their_standard_factors(unit: str) -> None:
    assert parse_size(f"3 {unit}") == 3 * FACTORS[unit]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512 MiB", 512 * 2**20),
        ("512MiB", 512 * 2**20),
        ("  1.5 GB  ", 1_500_000_000),
        ("0", 0),
        ("4096", 4096),
        ("0.5 KiB", 512),
        ("1.9 B", 1),
    ],
)
def test_common_spellings_of_sizes_are_parsed(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


# The pairs that Kubernetes documents for its quantities, and the ends of the two scales.
@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("129E6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 123 * 2**20),
        ("512Mi", 512 * 2**20),
        ("1Gi", 2**30),
        ("1.5Gi", 3 * 2**29),
        ("500k", 500_000),
        ("1Ki", 2**10),
        ("2E", 2 * 10**18),
        ("2Ei", 2**61),
        ("1e+9", 10**9),
        (" 1Gi ", 2**30),
    ],
)
def test_quantities_of_kubernetes_are_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_thousandths_are_refused_with_what_they_mean() -> None:
    with pytest.raises(ConfigError, match="'m' is a thousandth there"):
        parse_size("500m")


@pytest.mark.parametrize(
    "value",
    [
        "512Mb",
        "512 mb",
        "512 M",
        "512 Mi",
        "512m",
        "512K",
        "512mi",
        "1e-3",
        "1e100",
        "1e3Mi",
        "Mi",
        "-1 MiB",
        "+1 MiB",
        ".5 MiB",
        "5. MiB",
        "1,000",
        "1_000",
        "",
        " ",
        "MiB",
        "nan",
        "inf",
        "\N{ARABIC-INDIC DIGIT FIVE} MiB",  # `\\d` would accept it
        "1 MiB 2",
        "9" * 19,
        "50%",
        -1,
        -0.5,
        0.5,
        math.nan,
        math.inf,
        -math.inf,
        True,
        None,
        b"512",
        [512],
    ],
)
def test_invalid_size_is_refused_with_the_accepted_forms(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(value, name="budget")

    assert caught.value.name == "budget"
    assert caught.value.value is value
    assert "'512 MiB'" in caught.value.accepted


@given(st.integers(min_value=0))
def test_bare_number_is_bytes_however_large(size_bytes: int) -> None:
    assert parse_size(size_bytes) == size_bytes


def test_number_beyond_the_largest_float_is_parsed() -> None:
    assert parse_size(10**400) == 10**400
    with pytest.raises(ConfigError):
        parse_size(-(10**400))


@given(st.floats(min_value=0, max_value=1e300).map(math.floor).map(float))
def test_float_without_a_fraction_is_bytes(size_bytes: float) -> None:
    assert parse_size(size_bytes) == int(size_bytes)


@given(
    whole=st.integers(min_value=0, max_value=10**18 - 1),
    fraction=st.integers(min_value=0, max_value=10**9 - 1),
    unit=st.sampled_from(sorted(FACTORS)),
)
def test_no_byte_is_lost_to_rounding(whole: int, fraction: int, unit: str) -> None:
    size_bytes = parse_size(f"{whole}.{fraction:09} {unit}")

    assert size_bytes == (whole * 10**9 + fraction) * FACTORS[unit] // 10**9


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except ConfigError:
        return

    assert size_bytes >= 0
    assert re.search("[0-9]", text)


@given(whole=st.integers(min_value=0, max_value=2**63), percent=st.integers(min_value=0, max_value=100))
def test_percentage_is_an_exact_share_of_the_whole(whole: int, percent: int) -> None:
    assert parse_size(f"{percent}%", percent_of=lambda: whole) == whole * percent // 100


def test_percentage_may_have_a_fraction() -> None:
    assert parse_size("12.5 %", percent_of=lambda: 1000) == 125


def test_limit_is_read_only_for_a_percentage() -> None:
    calls: list[str] = []

    def limit() -> int:
        calls.append("limit")
        return 1000

    assert parse_size("1 KiB", percent_of=limit) == 1024
    assert calls == []


@pytest.mark.parametrize("value", ["100.1%", "-1%", "%", "1%%"])
def test_percentage_above_100_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="from '0%' to '100%'"):
        parse_size(value, percent_of=lambda: 1000)


def test_percentage_of_an_unknown_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="no limit is known"):
        parse_size("80%", percent_of=lambda: None)


def test_error_does_not_offer_a_percentage_without_a_limit() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size("80%")

    assert "%" not in caught.value.accepted


def test_count_is_at_least_its_minimum() -> None:
    assert parse_count(1, name="maxlen") == 1
    assert parse_count(0, name="keep", minimum=0) == 0


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, None, math.inf])
def test_invalid_count_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"maxlen=.* a whole number of at least 1"):
        parse_count(value, name="maxlen")


@pytest.mark.parametrize("value", [0, 5, 0.25, 1e9])
def test_seconds_are_returned_as_a_float(value: float) -> None:
    seconds = parse_seconds(value, name="grace")

    assert seconds == value
    assert type(seconds) is float


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, "5", True, None, 10**400])
def test_invalid_duration_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"grace=.* seconds as a finite number"):
        parse_seconds(value, name="grace")


def test_valid_choice_is_returned() -> None:
    assert parse_choice("join", ("join", "cancel"), name="on_exit") == "join"


@pytest.mark.parametrize("value", ["Join", "", None, 1, ["join"]])
def test_invalid_choice_is_refused_with_all_choices(value: object) -> None:
    with pytest.raises(ConfigError, match="'join' or 'cancel'"):
        parse_choice(value, ("join", "cancel"), name="on_exit")
