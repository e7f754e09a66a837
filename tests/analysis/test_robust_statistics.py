"""Robust statistics against their definitions, and against scipy and pymannkendall where those are installed."""

from itertools import combinations
from statistics import median as standard_median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.analysis._robust_statistics import kendall_tau, median, noise_of, theil_sen

pytestmark = pytest.mark.once

figures = st.lists(st.integers(-(10**6), 10**6).map(float), min_size=2, max_size=32)


@given(figures)
def test_median_is_that_of_the_standard_library(values: list[float]) -> None:
    assert median(values) == standard_median(values)


@given(figures)
def test_tau_counts_pairs(values: list[float]) -> None:
    signs = [(later > value) - (later < value) for value, later in combinations(values, 2)]

    assert kendall_tau(values) == pytest.approx(sum(signs) / len(signs))


@given(figures)
def test_theil_sen_is_the_median_of_all_slopes(values: list[float]) -> None:
    slopes = [(later - value) / (at - start) for (start, value), (at, later) in combinations(enumerate(values), 2)]

    assert theil_sen(values) == pytest.approx(standard_median(slopes))


@given(figures)
def test_statistics_agree_with_scipy_and_pymannkendall(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    pymannkendall = pytest.importorskip("pymannkendall")

    assert theil_sen(values) == pytest.approx(stats.theilslopes(values)[0])
    assert kendall_tau(values) == pytest.approx(pymannkendall.original_test(values).Tau)


def test_fewer_than_two_figures_have_no_trend() -> None:
    assert (kendall_tau([1.0]), theil_sen([1.0]), noise_of([1.0])) == (0.0, 0.0, 0.0)


def test_noise_is_not_moved_by_a_trend_or_a_step() -> None:
    wave = [0.0, 3.0, -3.0, 1.0, -2.0, 2.0, -1.0, 0.5] * 4
    steep = [value + 50 * place for place, value in enumerate(wave)]
    stepped = [value + 1000 * (place > 16) for place, value in enumerate(wave)]

    assert noise_of([5.0 * place for place in range(32)]) == 0.0
    assert noise_of(steep) == pytest.approx(noise_of(wave), rel=0.2)
    assert noise_of(stepped) == pytest.approx(noise_of(wave), rel=0.2)
