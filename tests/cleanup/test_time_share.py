"""The purse of wall time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.cleanup import TokenBucket


def test_the_share_of_fifteen_seconds_is_granted_in_advance_and_not_twice():
    purse = TokenBucket(0.1, now=100.0)

    assert purse.available_s(100.0) == pytest.approx(1.5)
    assert purse.available_s(115.0) == pytest.approx(1.5)
    assert purse.available_s(125.0) == pytest.approx(2.5)


def test_the_share_of_a_minute_is_kept_at_most():
    purse = TokenBucket(0.1, now=0.0)

    assert purse.available_s(1e6) == pytest.approx(6.0)


def test_what_was_overspent_is_paid_back():
    purse = TokenBucket(0.1, now=0.0)
    purse.spend(3.5)

    assert purse.available_s(15.0) == pytest.approx(-2.0)
    assert purse.available_s(35.0) == pytest.approx(0.0)
    assert purse.spent_s == 3.5


def test_a_clock_that_stands_gives_nothing():
    purse = TokenBucket(0.1, now=0.0)
    purse.available_s(20.0)

    assert purse.available_s(20.0) == purse.available_s(20.0)


@given(
    share=st.floats(0.001, 1.0),
    moments=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=200),
)
def test_what_is_spent_never_exceeds_the_share_of_wall_time_but_for_the_last_expense(share, moments):
    purse = TokenBucket(share, now=0.0)
    now = 0.0

    for pause_s, wanted_s in moments:
        now += pause_s
        if purse.available_s(now) > 0:
            purse.spend(wanted_s)
            assert purse.spent_s - wanted_s <= share * max(now, 15.0) * (1 + 1e-9)
            now += wanted_s
