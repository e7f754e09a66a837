"""The verdict on growth per call, from synthetic sequences without memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.analysis import Verdict
from memtools.analysis._growth_by_call import Round, judge_growth_by_call


def _rounds(*grown: int, calls: int = 50) -> list[Round]:
    return [Round(calls, one) for one in grown]


def _doubling(rate: float, start: int = 50, times: int = 6) -> list[Round]:
    return [Round(start * 2**power, round(rate * start * 2**power)) for power in range(times)]


@pytest.mark.parametrize(
    ("rounds", "answer"),
    [
        (_rounds(0, 0, 0, 0, 0), Verdict.CLEAN),
        (_rounds(-400, -20, 0, 0, 0), Verdict.CLEAN),
        (_rounds(90_000, 0, 0, 0, 0), Verdict.CLEAN),  # an import at the first call
        (_rounds(10_000, 5_000, 2_500, 100, 0), Verdict.INCONCLUSIVE),  # more rounds will tell
        (_rounds(10_000, 5_000, 2_500, 100, 0, 0, 0, 0), Verdict.CLEAN),
        (_rounds(10_000, 10_000, 10_000, 10_000, 10_000), Verdict.LEAK),
        (_rounds(9_900, 10_100, 10_050, 9_950, 10_000), Verdict.LEAK),
        (_rounds(10_000, 12_000, 14_000, 16_000), Verdict.LEAK),  # it accelerates
        (_rounds(10_000, 0, 10_000, 0, 10_000), Verdict.INCONCLUSIVE),
        (_rounds(10_000, 8_000, 6_400, 5_120, 4_096), Verdict.INCONCLUSIVE),  # a fifth less each time
        (_rounds(10_000, 10_000), Verdict.INCONCLUSIVE),
        ([], Verdict.INCONCLUSIVE),
        (_doubling(10.24), Verdict.LEAK),  # 1 KiB kept of each hundredth call
        ([Round(50 * 2**power, 3_000) for power in range(6)], Verdict.CLEAN),  # by the round, and not by the call
        (
            [Round(50, 10_000), Round(100, 20_000), Round(200, 40_000), Round(400, 0), Round(800, 0)],
            Verdict.CLEAN,
        ),  # full
    ],
)
def test_rounds_give_the_verdict(rounds: list[Round], answer: Verdict) -> None:
    assert judge_growth_by_call(rounds, tolerance=8).answer is answer


def test_growth_below_the_tolerance_is_none() -> None:
    rounds = _rounds(200, 200, 200, 200)

    assert judge_growth_by_call(rounds, tolerance=4).answer is Verdict.CLEAN
    assert judge_growth_by_call(rounds, tolerance=3.9).answer is Verdict.LEAK


def test_plateau_is_reported_as_stopped() -> None:
    verdict = judge_growth_by_call(_rounds(5_000, 5_000, 0, 0, 0), tolerance=4)

    assert verdict.reason == "it grew at first, and stopped"


def test_rate_is_of_the_later_half() -> None:
    verdict = judge_growth_by_call([Round(100, 90_000), Round(100, 1_000), Round(200, 2_000)], tolerance=4)

    assert verdict.per_call == 10


@given(st.integers(5, 10**6), st.integers(3, 30), st.integers(1, 1000))
def test_steady_growth_is_always_a_leak(rate: int, rounds: int, calls: int) -> None:
    assert judge_growth_by_call([Round(calls, rate * calls)] * rounds, tolerance=4).answer is Verdict.LEAK


@given(st.lists(st.integers(-(10**9), 0), min_size=1, max_size=30))
def test_no_growth_is_never_a_leak(grown: list[int]) -> None:
    assert judge_growth_by_call(_rounds(*grown), tolerance=0).answer is Verdict.CLEAN


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=12), st.integers(2, 6))
def test_stopped_growth_is_never_a_leak(grown: list[int], length: int) -> None:
    rounds = _rounds(*grown) + [Round(50 * (len(grown) + 1), 0)] * length

    assert judge_growth_by_call(rounds, tolerance=0).answer is Verdict.CLEAN


@given(st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=12))
def test_leak_rises_in_each_of_the_last_three_rounds(grown: list[int]) -> None:
    verdict = judge_growth_by_call(_rounds(*grown), tolerance=1)

    if verdict.answer is Verdict.LEAK:
        assert min(grown[-3:]) > 50
