"""Levels and readings."""

import pickle
from dataclasses import FrozenInstanceError

import pytest

from memtools.errors import ReadingError
from memtools.readings import Level, Reading


def test_levels_are_ordered_by_how_short_memory_is() -> None:
    assert Level.NORMAL < Level.WARNING < Level.CRITICAL


@pytest.mark.parametrize(
    ("used", "limit", "fraction"),
    [
        (50, 100, 0.5),
        (150, 100, 1.5),
        (0, 100, 0.0),
        (5, None, None),
        (0, 0, 1.0),
        (1, 0, float("inf")),
    ],
)
def test_fraction_is_the_share_of_the_limit(used: int, limit: int | None, fraction: float | None) -> None:
    assert Reading(used, limit, at=0.0).fraction == fraction


@pytest.mark.parametrize(
    ("used", "limit", "text"),
    [
        (2**20, 4 * 2**20, "1.0 MiB of 4.0 MiB (25%)"),
        (2**20, None, "1.0 MiB, no limit known"),
        (2**20, 0, "1.0 MiB of 0 B"),
    ],
)
def test_reading_as_text_names_usage_and_limit(used: int, limit: int | None, text: str) -> None:
    assert str(Reading(used, limit, at=0.0)) == text


def test_reading_cannot_be_changed() -> None:
    reading = Reading(1, 2, at=0.0)

    with pytest.raises(FrozenInstanceError):
        reading.used_bytes = 5  # type: ignore[misc]


def test_reading_error_survives_pickling() -> None:
    error = ReadingError(24, "no descriptor left", "/proc/self/statm")

    copy = pickle.loads(pickle.dumps(error))

    assert (copy.errno, copy.strerror, copy.filename) == (24, "no descriptor left", "/proc/self/statm")
    assert str(copy) == str(error)


def test_share_that_rounds_to_nothing_is_left_out() -> None:
    assert str(Reading(100 * 2**20, 24 * 2**30, at=0.0)) == "100.0 MiB of 24.0 GiB"
    assert str(Reading(130 * 2**20, 24 * 2**30, at=0.0)) == "130.0 MiB of 24.0 GiB (1%)"
