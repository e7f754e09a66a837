"""The trend detector: what rises, what only looks like it, and what it learns."""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from memtools.analysis import LeakKind, TrendDetector
from memtools.analysis._trend_detector import KEPT, LEVELS, LevelFloors
from memtools.errors import ConfigError

pytestmark = pytest.mark.once

MIB = 1 << 20
LIMIT = 1000 * MIB
HOUR, DAY = 60, 1440


def _run(
    used: Callable[[int], float],
    minutes: int,
    *,
    detector: TrendDetector | None = None,
    limit: float | None = LIMIT,
    counters: Callable[[int], dict[str, float]] = lambda minute: {},
    start: int = 0,
) -> tuple[TrendDetector, int | None]:
    """Return the detector, and the minute in which it first said that the floor rises."""
    detector = detector or TrendDetector()
    first = None
    for minute in range(start, start + minutes):
        detector.observe(minute * 60.0, used(minute) * MIB, limit_bytes=limit, **counters(minute))
        if first is None and detector.rising is not None:
            first = minute
    return detector, first


def _linear(minute: int) -> float:
    return 200 + minute  # reaches the limit after 800 minutes


class TestRising:
    def test_steady_rise_is_found_before_half_of_the_way(self) -> None:
        detector, first = _run(_linear, 400)

        assert first is not None
        assert 90 <= first <= 400
        rising = detector.rising
        assert rising is not None
        assert rising.tau == 1.0
        assert rising.bytes_per_s == pytest.approx(MIB / 60, rel=0.1)
        assert rising.floor_bytes == pytest.approx(590 * MIB, rel=0.05)
        assert rising.headroom_bytes == pytest.approx(410 * MIB, rel=0.05)
        assert "the lowest use rose by" in rising.reason

    @pytest.mark.parametrize(
        "used",
        [
            lambda minute: 900.0,
            lambda minute: 200 + (minute % 60) * 10,  # garbage until a collection
            lambda minute: 200 + min(minute, 60) * 6,  # a warm-up
            lambda minute: 200 + 500 * (minute >= 300),  # a table that is loaded
            lambda minute: 900 - minute * 0.5,
            lambda minute: 200 + 600 * (100 <= minute % 400 < 140),  # bursts
        ],
        ids=["flat", "sawtooth", "warm-up", "step", "falling", "bursts"],
    )
    def test_healthy_program_does_not_rise(self, used: Callable[[int], float]) -> None:
        assert _run(used, 2 * DAY)[1] is None

    def test_rise_far_from_the_limit_is_none_yet(self) -> None:
        assert _run(lambda minute: 200 + minute * 0.05, 10 * HOUR)[1] is None

    @pytest.mark.parametrize("limit", [None, 0])
    def test_without_a_limit_nothing_is_judged(self, limit: float | None) -> None:
        detector, first = _run(_linear, 400, limit=limit)

        assert first is None
        assert detector.limit_bytes is None

    def test_sensitivity_decides_how_early(self) -> None:
        found = [_run(_linear, 800, detector=TrendDetector(name))[1] for name in ("high", "balanced", "low")]

        assert None not in found
        assert all(earlier <= later for earlier, later in pairwise(found))
        assert found[0] < found[2]

    def test_unknown_sensitivity_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="sensitivity"):
            TrendDetector("extreme")

    def test_alarm_ends_when_half_of_the_rise_recedes(self) -> None:
        detector, _ = _run(_linear, 400)
        _run(lambda minute: 250.0, 30, detector=detector, start=400)

        assert detector.rising is None

    def test_observe_tells_when_a_block_closes(self) -> None:
        detector = TrendDetector()

        assert [detector.observe(at, 1.0) for at in (0.0, 299.0, 300.0, 301.0, 600.0)] == [
            False,
            False,
            True,
            False,
            True,
        ]

    def test_merged_readings_give_their_lowest_and_highest(self) -> None:
        detector = TrendDetector()
        for block in range(10):
            detector.observe(block * 300.0, 5.0, highest_bytes=9.0)

        assert list(detector.levels[0].floors) == [5.0] * 7
        assert list(detector.levels[0].peaks) == [9.0] * 7


class TestLearning:
    def test_rise_that_receded_is_learned_and_not_reported_again(self) -> None:
        def daily(minute: int) -> float:
            hour = minute % DAY / HOUR
            return 300 + 25 * max(0.0, min(hour - 2, 14)) if hour < 18 else 300.0

        detector, _ = _run(daily, DAY)
        _, again = _run(daily, DAY, detector=detector, start=DAY)

        assert again is None
        assert max(level.learned for level in detector.levels) > 200 * MIB

    def test_state_survives_a_restart(self) -> None:
        detector, _ = _run(lambda minute: 300 + 300 * (minute % 600 < 300), 2 * DAY)
        state = json.loads(json.dumps(detector.state()))

        new = TrendDetector()
        new.restore(state)

        assert new.state() == detector.state()
        assert any(state["receded_bytes"])

    @pytest.mark.parametrize(
        "state",
        [
            {},
            {"age_blocks": -1, "receded_bytes": [-1.0, "x", None, float("nan"), float("inf")]},
            {"age_blocks": True, "receded_bytes": 5},
        ],
    )
    def test_state_that_makes_no_sense_is_left_out(self, state: dict[str, object]) -> None:
        detector = TrendDetector()
        detector.restore(state)

        assert detector.state() == TrendDetector().state()

    def test_older_process_may_extrapolate_further(self) -> None:
        old = TrendDetector()
        old.restore({"age_blocks": 10_000})

        _, early = _run(_linear, 800, detector=old)
        _, late = _run(_linear, 800)

        assert early is not None
        assert late is not None
        assert early < late


class TestGaps:
    def test_short_gap_stands_still(self) -> None:
        detector, _ = _run(_linear, 60)
        number = len(detector.levels[0].floors)
        detector.observe(60 * 60.0 + 1800, 260.0 * MIB)

        assert len(detector.levels[0].floors) == number + 7  # six of the gap, and the block that was open

    def test_long_gap_begins_anew(self) -> None:
        detector, first = _run(_linear, 400)
        assert first is not None
        detector.observe(400 * 60.0 + 7200, 600.0 * MIB)

        assert detector.rising is None
        assert [len(level.floors) for level in detector.levels] == [0] * LEVELS


class TestConfirmation:
    def test_without_counters_it_is_no_leak(self) -> None:
        rising = _run(_linear, 400)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.UNKNOWN
        assert not rising.is_leak
        assert "no counters" in rising.reason

    def test_blocks_that_rise_confirm_a_leak_of_python(self) -> None:
        counters = lambda minute: {"blocks": 10**6 + 5000 * minute, "malloc_bytes": 50.0 * MIB}  # noqa: E731
        rising = _run(_linear, 400, counters=counters)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.PYTHON
        assert rising.to_dict()["is_leak"] is True

    def test_malloc_that_rises_confirms_a_native_leak(self) -> None:
        counters = lambda minute: {"blocks": 10**6, "malloc_bytes": (50.0 + minute) * MIB}  # noqa: E731
        rising = _run(_linear, 400, counters=counters)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.NATIVE

    def test_what_ended_calls_leave_confirms_earlier(self) -> None:
        def counters(minute: int) -> dict[str, float]:
            return {"blocks": 10**6 + 5000 * minute, "owned_bytes": minute * MIB, "left_bytes": minute * MIB}

        detector, confirmed = _run(_linear, 400, counters=counters)
        _, plain = _run(_linear, 400)

        assert confirmed is not None
        assert plain is not None
        assert confirmed < plain
        assert detector.rising is not None
        assert detector.rising.is_leak

    def test_what_open_calls_hold_is_no_leak(self) -> None:
        def counters(minute: int) -> dict[str, float]:
            return {"blocks": 10**6 + 5000 * minute, "owned_bytes": minute * MIB, "left_bytes": 1.0}

        rising = _run(_linear, 400, counters=counters)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.NONE
        assert "does not rise with it" in rising.reason

    def test_ledger_that_does_not_see_the_growth_says_nothing(self) -> None:
        def counters(minute: int) -> dict[str, float]:
            return {"blocks": 10**6 + 5000 * minute, "owned_bytes": 1.0 * MIB, "left_bytes": 1.0 * MIB}

        rising = _run(_linear, 400, counters=counters)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.PYTHON

    def test_confirmed_leak_stays_one_while_it_rises(self) -> None:
        def counters(minute: int) -> dict[str, float]:
            left = min(minute, 300) * MIB
            return {"blocks": 10**6 + 5000 * minute, "owned_bytes": minute * MIB, "left_bytes": left}

        rising = _run(_linear, 600, counters=counters)[0].rising

        assert rising is not None
        assert rising.kind is LeakKind.PYTHON
        assert "before" in rising.reason


def test_levels_keep_their_last_floors_and_halve_in_number() -> None:
    detector, _ = _run(lambda minute: 200.0, 5 * DAY)

    assert [len(level.floors) for level in detector.levels] == [KEPT] * 6 + [(5 * 288 - 3) // 64]
    assert [level.block_s for level in detector.levels] == [300.0 * 2**place for place in range(LEVELS)]


def test_level_says_how_many_blocks_belong_to_the_start() -> None:
    level = LevelFloors(300.0)
    for floor in range(10):
        level.close((float(floor),) * 6)
    assert level.unsettled == 4
    for floor in range(30):
        level.close((float(floor),) * 6)
    assert level.unsettled == 0


@pytest.fixture
def scores() -> Iterator[ModuleType]:
    folder = str(Path(__file__).parent.parent / "benchmarks")
    names = ("_detectors", "_traces", "_trend_scores", "bench_trends", "_compare")
    sys.path.insert(0, folder)
    try:
        import bench_trends

        yield bench_trends
    finally:
        sys.path.remove(folder)
        for name in names:
            sys.modules.pop(name, None)


class TestTraces:
    """The reduced set of the benchmark: two seeds of each family, neither of development nor held out."""

    def test_seeds_are_disjoint(self, scores: ModuleType) -> None:
        kept = [set(seeds) for seeds in scores.SEEDS.values()]

        assert len(set.union(*kept)) == sum(map(len, kept))

    def test_trace_is_the_same_for_a_seed(self, scores: ModuleType) -> None:
        trace = scores.make_trace("mixed", 5_000)

        assert (len(trace.used), trace.onset) == (7 * DAY, None)
        assert [round(trace.used[minute], 6) for minute in (0, 100, 10_000)] == MIXED

    def test_reduced_set_has_the_expected_scores(self, scores: ModuleType) -> None:
        name = scores.BALANCED
        alarms = {name: scores.alarms()[name], scores.CONFIRMED: scores.alarms()[scores.CONFIRMED]}
        found = scores.score_alarms(scores.make_traces(scores.REDUCED_SEEDS), alarms)

        assert [(one.found, one.missed, one.false_traces) for one in found.values()] == [(15, 1, 0), (15, 1, 0)]
        assert [one.found_at_half_life for one in found.values()] == HALF

    def test_state_and_worst_sample_are_bounded(self, scores: ModuleType) -> None:
        cost = scores.measure_cost(scores.make_trace("linear", 5_000))

        assert cost.state_bytes <= 16 << 10


MIXED = [0.27737, 0.525104, 0.585843]
HALF = [13, 15]
