"""The token bucket that limits clean-up to a share of wall time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.cleanup._reclaimer import TokenBucket


def test_share_of_fifteen_seconds_is_granted_once():
    bucket = TokenBucket(0.1, now=100.0)

    assert bucket.available_s(100.0) == pytest.approx(1.5)
    assert bucket.available_s(115.0) == pytest.approx(1.5)
    assert bucket.available_s(125.0) == pytest.approx(2.5)


def test_bucket_holds_at_most_the_share_of_a_minute():
    bucket = TokenBucket(0.1, now=0.0)

    assert bucket.available_s(1e6) == pytest.approx(6.0)


def test_overdraft_is_paid_back():
    bucket = TokenBucket(0.1, now=0.0)
    bucket.spend(3.5)

    assert bucket.available_s(15.0) == pytest.approx(-2.0)
    assert bucket.available_s(35.0) == pytest.approx(0.0)
    assert bucket.spent_s == 3.5


def test_stopped_clock_adds_no_tokens():
    bucket = TokenBucket(0.1, now=0.0)
    bucket.available_s(20.0)

    assert bucket.available_s(20.0) == bucket.available_s(20.0)


@given(
    share=st.floats(0.001, 1.0),
    moments=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=200),
)
def test_spending_stays_within_the_share_before_each_expense(share, moments):
    bucket = TokenBucket(share, now=0.0)
    now = 0.0

    for pause_s, wanted_s in moments:
        now += pause_s
        if bucket.available_s(now) > 0:
            bucket.spend(wanted_s)
            assert bucket.spent_s - wanted_s <= share * max(now, 15.0) * (1 + 1e-9)
            now += wanted_s
