"""Merging of readings: what it keeps, and how much memory it takes."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.timelines._samples import TIERS, UNKNOWN, SampleSeries, Tier, merged, to_sample

pytestmark = pytest.mark.once

steps = st.lists(
    st.tuples(st.floats(0.05, 900.0), st.integers(0, 2**40), st.one_of(st.none(), st.integers(0, 2**30))),
    min_size=1,
    max_size=300,
)


def _fill(readings: list[tuple[float, int, int | None]], tiers: tuple[tuple[float, int], ...]) -> SampleSeries:
    series = SampleSeries()
    series.tiers = tuple(Tier(width_s, capacity) for width_s, capacity in tiers)
    times = accumulate(gap for gap, _, _ in readings)
    for at, (_, used, blocks) in zip(times, readings, strict=True):
        series.add((at, 0.0, 1.0, float(used), float(used), float(used), UNKNOWN if blocks is None else float(blocks)))
    return series


@given(steps)
def test_merging_keeps_count_minimum_maximum_and_mean(readings: list[tuple[float, int, int | None]]) -> None:
    series = _fill(readings, ((0.0, 3), (60.0, 4), (900.0, 2), (3600.0, 4)))
    samples = [to_sample(row) for _, row in series.rows()]
    used = [figure for _, figure, _ in readings]
    mean = sum(one.mean_bytes * one.count for one in samples) / len(readings)

    assert sum(one.count for one in samples) == len(readings)
    assert min(one.lowest_bytes for one in samples) == min(used)
    assert max(one.highest_bytes for one in samples) == max(used)
    assert mean == pytest.approx(sum(used) / len(used), rel=1e-9, abs=1)
    assert all(one.lowest_bytes <= one.mean_bytes <= one.highest_bytes for one in samples)


@given(steps)
def test_merging_keeps_order_blocks_and_the_newest(readings: list[tuple[float, int, int | None]]) -> None:
    series = _fill(readings, ((0.0, 3), (60.0, 4), (900.0, 2), (3600.0, 4)))
    samples = [to_sample(row) for _, row in series.rows()]
    known = [blocks for _, _, blocks in readings if blocks is not None]
    kept = [one.blocks for one in samples if one.blocks is not None]

    assert [one.at_s for one in samples] == sorted(one.at_s for one in samples)
    assert all(one.at_s + one.duration_s <= later.at_s + 1e-6 for one, later in pairwise(samples))
    assert min(kept, default=None) == min(known, default=None)
    assert [one.highest_bytes for one in samples[-3:]] == [used for _, used, _ in readings][-3:]


@given(steps)
def test_tiers_never_hold_more_than_their_capacity(readings: list[tuple[float, int, int | None]]) -> None:
    series = _fill(readings, ((0.0, 3), (60.0, 4), (900.0, 2), (3600.0, 4)))

    assert all(len(tier) <= tier.capacity for tier in series.tiers)


def test_rows_of_all_tiers_take_less_than_a_mebibyte() -> None:
    assert sum(capacity for _, capacity in TIERS) * 56 < 2**20 - 100_000


def test_full_last_tier_merges_pairs_and_doubles_its_width() -> None:
    tier = Tier(10.0, 4)
    for number in range(5):
        tier.append((10.0 * number, 5.0, 2.0, number, number, number, UNKNOWN))

    tier.halve()

    assert tier.width_s == 20.0
    assert [row[:4] for row in tier] == [(0.0, 15.0, 4.0, 0.0), (20.0, 15.0, 4.0, 2.0), (40.0, 5.0, 2.0, 4.0)]


def test_merged_mean_stays_within_its_range() -> None:
    row = (0.0, 0.0, 3.0, 0.1, 0.1, 0.1, UNKNOWN)

    assert merged(row, (1.0, 0.0, 7.0, 0.1, 0.1, 0.1, UNKNOWN))[3:6] == (0.1, 0.1, 0.1)
