"""Anomalies, owners, and the judgement on a whole timeline."""

import json
from collections.abc import Callable

import pytest

from memtools.analysis import Anomaly, find_anomalies, judge_trend
from memtools.analysis._trend import rising_owners
from memtools.timelines import Sample, Timeline, TimelineEvent

pytestmark = pytest.mark.once

MIB = 1 << 20
START = 1_800_000_000.0
HOUR = 60


def _samples(used: Callable[[int], float], minutes: int) -> tuple[Sample, ...]:
    sizes = [int(used(minute) * MIB) for minute in range(minutes)]
    return tuple(Sample(START + 60.0 * at, 0.0, 1, size, size, size, None) for at, size in enumerate(sizes))


def _anomalies(used: Callable[[int], float], *deploys: int, minutes: int = 8 * HOUR) -> tuple[Anomaly, ...]:
    events = [TimelineEvent(START + 60.0 * at, "deploy", f"v{at}") for at in deploys]
    return find_anomalies(_samples(used, minutes), events, limit_bytes=1000 * MIB)


def _wave(minute: int) -> float:
    return 300 + minute * 7 % 11


class TestAnomalies:
    def test_shift_of_the_level_is_found_once(self) -> None:
        (found,) = _anomalies(lambda minute: _wave(minute) + 200 * (minute >= 240))

        assert found.kind == "level shift"
        assert found.at_s == pytest.approx(START + 240 * 60, abs=600)
        assert found.after_bytes - found.before_bytes == pytest.approx(200 * MIB, rel=0.05)
        assert "rose from" in found.text

    def test_shift_down_is_found_as_well(self) -> None:
        (found,) = _anomalies(lambda minute: _wave(minute) - 100 * (minute >= 240))

        assert "fell from" in found.text

    def test_burst_is_found_with_its_peak(self) -> None:
        (found,) = _anomalies(lambda minute: _wave(minute) + 400 * (200 <= minute < 215))

        assert found.kind == "burst"
        assert found.seconds == 15 * 60
        assert found.after_bytes == pytest.approx(705 * MIB, rel=0.02)
        assert "over within 15 min" in found.text

    @pytest.mark.parametrize(
        "used",
        [_wave, lambda minute: 200 + minute, lambda minute: 300 + 30 * (minute % 20), lambda minute: 300.0],
        ids=["noise", "rise", "sawtooth", "flat"],
    )
    def test_ordinary_course_has_none(self, used: Callable[[int], float]) -> None:
        assert _anomalies(used) == ()

    def test_floor_that_stays_up_after_a_deploy_is_found(self) -> None:
        (found,) = _anomalies(lambda minute: _wave(minute) + 12 * (minute >= 240), 240)

        assert found.kind == "deploy"
        assert found.text == "after the deploy 'v240' the floor did not come back: it stays 12.0 MiB higher"
        assert found.to_dict()["before_bytes"] == 300 * MIB

    def test_deploy_that_comes_back_is_none(self) -> None:
        assert _anomalies(lambda minute: _wave(minute) + 30 * (240 <= minute < 260), 240) == ()

    def test_deploy_without_readings_on_both_sides_is_none(self) -> None:
        assert _anomalies(_wave, 0, 8 * HOUR - 1) == ()

    def test_second_deploy_ends_the_look_at_the_first(self) -> None:
        found = _anomalies(lambda minute: _wave(minute) + 12 * (minute >= 290), 240, 290)

        assert [one.text.split("'")[1] for one in found] == ["v290"]

    def test_few_samples_have_none(self) -> None:
        assert find_anomalies(()) == ()
        assert find_anomalies(_samples(_wave, 3)) == ()

    def test_merged_samples_are_taken_as_they_are(self) -> None:
        samples = [
            Sample(START + 3600.0 * hour, 3500.0, 60, 300 * MIB, 310 * MIB, (900 if hour == 30 else 320) * MIB, None)
            for hour in range(60)
        ]
        (found,) = find_anomalies(samples)

        assert (found.kind, found.seconds) == ("burst", 3600.0)


class TestOwners:
    @staticmethod
    def _points(live: Callable[[int], float], number: int = 40) -> tuple[tuple[float, int], ...]:
        return tuple((START + 60.0 * place, int(live(place) * MIB)) for place in range(number))

    def test_owner_that_rises_is_named_with_its_rate(self) -> None:
        owners = {
            "/orders/{id}": self._points(lambda place: 10 + 0.2 * place),
            "faster": self._points(lambda place: 10 + 0.4 * place),
            "flat": self._points(lambda place: 50.0),
            "filling": self._points(lambda place: 50 * (1 - 0.8**place)),
            "small": self._points(lambda place: 0.01 * place),
        }
        found = rising_owners(owners)

        assert [one.name for one in found] == ["faster", "/orders/{id}"]
        assert found[1].bytes_per_s == pytest.approx(12 * MIB / 3600, rel=0.02)
        assert found[1].text.startswith("/orders/{id} grows by 12.0 MiB/h: ")
        assert found[1].to_dict()["live_bytes"] == int(17.8 * MIB)

    def test_owner_with_few_points_is_not_judged(self) -> None:
        assert rising_owners({"a": self._points(lambda place: 10.0 * place, 11)}) == ()

    def test_points_of_one_moment_are_not_judged(self) -> None:
        assert rising_owners({"a": tuple((START, place * MIB) for place in range(20))}) == ()


def test_judgement_has_all_its_parts() -> None:
    timeline = Timeline(limit_bytes=1000 * MIB)
    for minute in range(420):
        timeline.add((200 + minute) * MIB, blocks=10**6 + 5000 * minute, at_s=START + 60.0 * minute)
        timeline.add_owners({"/orders": minute * MIB}, at_s=START + 60.0 * minute)
    trend = judge_trend(
        timeline.samples, limit_bytes=timeline.limit_bytes, events=timeline.events, owners=timeline.owners
    )

    assert trend.rising is not None
    assert trend.rising.is_leak
    assert trend.forecast.seconds_to_limit == pytest.approx(380 * 60, rel=0.1)
    assert trend.thresholds is not None
    assert [owner.name for owner in trend.owners] == ["/orders"]
    assert json.loads(json.dumps(trend.to_dict()))["rising"]["kind"] == "python"


def test_judgement_on_nothing_is_empty() -> None:
    trend = judge_trend(())

    assert (trend.rising, trend.thresholds, trend.owners, trend.anomalies) == (None, None, (), ())
    assert trend.to_dict()["rising"] is None
