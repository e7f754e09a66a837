"""Time to the limit: lines, late onsets, parabolas, daily cycles, and when nothing is said."""

import math
import random
from collections.abc import Callable

import pytest

from memtools.analysis import Forecast, TrendDetector, forecast

pytestmark = pytest.mark.once

MIB = 1 << 20
LIMIT = 1000 * MIB
HOUR, DAY = 60, 1440


def _forecast(used: Callable[[int], float], minutes: int, *, limit: int | None = LIMIT, noise: float = 2.0) -> Forecast:
    rng = random.Random(7)
    detector = TrendDetector()
    for minute in range(minutes):
        detector.observe(minute * 60.0, (used(minute) + rng.uniform(0, noise)) * MIB, limit_bytes=limit)
    return forecast(detector.levels, limit)


class TestShapes:
    def test_line_reaches_the_limit_in_time(self) -> None:
        found = _forecast(lambda minute: 200 + minute, 400)

        assert found.seconds_to_limit == pytest.approx(400 * 60, rel=0.1)
        assert found.rate_bytes_per_s == pytest.approx(MIB / 60, rel=0.05)
        assert found.earliest_s is not None
        assert found.latest_s is not None
        assert found.earliest_s < found.seconds_to_limit < found.latest_s
        assert "steadily" in found.evidence

    def test_late_onset_counts_from_its_onset(self) -> None:
        found = _forecast(lambda minute: 200 + max(0, minute - 30 * HOUR) * 0.5, 44 * HOUR)

        assert found.rate_bytes_per_s == pytest.approx(0.5 * MIB / 60, rel=0.1)
        assert found.seconds_to_limit == pytest.approx((800 / 0.5 - 14 * HOUR) * 60, rel=0.15)

    def test_rise_that_gets_faster_is_extrapolated_as_one(self) -> None:
        found = _forecast(lambda minute: 200 + 800 * (minute / 2000) ** 2, 1000)

        assert found.seconds_to_limit == pytest.approx(1000 * 60, rel=0.15)
        assert "ever faster" in found.evidence

    def test_daily_cycle_cancels_out(self) -> None:
        found = _forecast(lambda minute: 200 + minute * 0.08 + 80 * math.sin(2 * math.pi * minute / DAY), 3 * DAY + 200)

        assert found.rate_bytes_per_s == pytest.approx(0.08 * MIB / 60, rel=0.2)

    def test_peaks_reach_the_limit_before_the_floor(self) -> None:
        flat = _forecast(lambda minute: 200 + minute, 400)
        peaks = _forecast(lambda minute: 200 + minute + 150 * (minute % 5 == 0), 400)

        assert peaks.seconds_to_limit is not None
        assert flat.seconds_to_limit is not None
        assert peaks.seconds_to_limit == pytest.approx(flat.seconds_to_limit - 150 * 60, rel=0.1)

    def test_over_the_limit_is_now(self) -> None:
        assert _forecast(lambda minute: 700 + minute, 400).seconds_to_limit == 0.0


class TestWithheld:
    @pytest.mark.parametrize(
        "used",
        [lambda minute: 500.0, lambda minute: 800 - minute, lambda minute: 200 + (minute % 60) * 5],
        ids=["flat", "falling", "sawtooth"],
    )
    def test_nothing_that_rises_gives_no_time(self, used: Callable[[int], float]) -> None:
        found = _forecast(used, 600)

        assert (found.seconds_to_limit, found.earliest_s, found.rate_bytes_per_s) == (None, None, 0.0)
        assert str(found) == "no limit in sight: the floor does not rise at any level"

    def test_few_readings_give_no_time(self) -> None:
        assert _forecast(lambda minute: 200 + minute, 60).seconds_to_limit is None

    def test_no_readings_give_no_time(self) -> None:
        assert forecast(TrendDetector().levels, LIMIT) == Forecast(
            0.0, None, None, None, 0, "the floor does not rise at any level"
        )

    def test_without_a_limit_there_is_a_rate_and_no_time(self) -> None:
        found = _forecast(lambda minute: 200 + minute, 400, limit=None)

        assert found.seconds_to_limit is None
        assert found.rate_bytes_per_s > 0
        assert "no limit is known" in found.evidence

    def test_over_a_year_is_no_time(self) -> None:
        detector = TrendDetector()
        for minute in range(7 * DAY):
            detector.observe(minute * 60.0, 2**40 + minute * 2**20, limit_bytes=2**46)

        found = forecast(detector.levels, 2**46)
        assert found.seconds_to_limit is None


def test_forecast_reads_as_a_sentence() -> None:
    found = Forecast(1.0, 5 * 3600.0, 3 * 3600 + 40 * 60.0, None, 1, "")

    assert str(found) == "limit in about 5 h, probably not before 3 h 40"
    assert found.to_dict()["latest_s"] is None
