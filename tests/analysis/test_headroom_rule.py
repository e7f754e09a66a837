"""Suggested thresholds from the largest rise within ten minutes."""

import json
import random
from collections.abc import Callable

import pytest

from memtools.analysis import HeadroomRule

pytestmark = pytest.mark.once

MIB = 1 << 20
LIMIT = 1000 * MIB


def _learned(used: Callable[[int], float], hours: int) -> HeadroomRule:
    rule = HeadroomRule()
    for minute in range(hours * 60 + 1):
        rule.observe(minute * 60.0, used(minute) * MIB)
    return rule


def test_headroom_is_half_more_than_the_rise_in_ten_minutes() -> None:
    rule = _learned(lambda minute: 300 + 100 * (minute % 60 < 5), 10)
    found = rule.suggestion(LIMIT, warning_bytes=800 * MIB)

    assert found is not None
    assert (found.rise_bytes, found.free_bytes) == (100 * MIB, 150 * MIB)
    assert (found.warning_bytes, found.critical_bytes) == (850 * MIB, 925 * MIB)
    assert found.hours == 10
    assert found.reason == (
        "the largest rise within 10 minutes is 100.0 MiB in 95 of 100 hours, and the warning keeps 200.0 MiB: "
        "keep 150.0 MiB"
    )
    assert found.to_dict()["hours"] == 10


@pytest.mark.parametrize(("rise", "free"), [(1, 30), (600, 300)], ids=["least", "most"])
def test_headroom_stays_within_its_bounds(rise: int, free: int) -> None:
    found = _learned(lambda minute: 300 + rise * (minute % 60 < 5), 10).suggestion(LIMIT)

    assert found is not None
    assert found.free_bytes == free * MIB
    assert "% of the limit)" in found.reason


def test_slow_rises_need_little_headroom() -> None:
    found = _learned(lambda minute: 300 + minute * 0.5, 10).suggestion(LIMIT)

    assert found is not None
    assert found.rise_bytes == 5 * MIB


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_nothing_is_suggested(limit: int | None) -> None:
    assert _learned(lambda minute: 300.0, 10).suggestion(limit) is None


def test_three_hours_are_needed() -> None:
    assert _learned(lambda minute: 300.0, 2).suggestion(LIMIT) is None
    assert _learned(lambda minute: 300.0, 3).suggestion(LIMIT) is not None


def test_rises_are_those_of_a_plain_search() -> None:
    rng = random.Random(3)
    used = [rng.randrange(200, 400) for _ in range(601)]
    rule = _learned(lambda minute: used[minute], 10)
    largest = [
        max(used[at] - min(used[max(0, at - 10) : at + 1]) for at in range(hour * 60, hour * 60 + 60))
        for hour in range(10)
    ]

    assert rule.state() == {"hourly_rises": [float(rise * MIB) for rise in largest]}


def test_week_is_remembered_and_survives_a_restart() -> None:
    rule = _learned(lambda minute: 300.0 + minute % 7, 200)
    state = json.loads(json.dumps(rule.state()))
    new = HeadroomRule()
    new.restore(state)

    assert len(state["hourly_rises"]) == 168
    assert new.suggestion(LIMIT) == rule.suggestion(LIMIT)


@pytest.mark.parametrize("state", [{}, {"hourly_rises": 5}, {"hourly_rises": [-1, "x", True, float("nan")]}])
def test_state_that_makes_no_sense_is_left_out(state: dict[str, object]) -> None:
    rule = HeadroomRule()
    rule.restore(state)

    assert rule.state() == {"hourly_rises": []}


def test_clock_that_was_set_back_does_no_harm() -> None:
    rule = HeadroomRule()
    rule.observe(7200.0, 100.0)
    rule.observe(60.0, 500.0)

    assert rule.suggestion(LIMIT) is None
