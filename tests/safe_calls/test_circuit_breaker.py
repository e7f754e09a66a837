"""The circuit breaker."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools._safe_calls import CircuitBreaker


def failing(breaker: CircuitBreaker, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.record_failure(now)


def test_new_breaker_is_closed() -> None:
    assert not CircuitBreaker().is_open(0.0)


@pytest.mark.parametrize(("failures", "is_open"), [(0, False), (4, False), (5, True), (6, True)])
def test_breaker_opens_after_five_failures_in_a_row(failures: int, is_open: bool) -> None:
    breaker = CircuitBreaker()

    failing(breaker, failures)

    assert breaker.is_open(1.0) == is_open
    assert breaker.failures_in_a_row == failures


def test_success_between_failures_keeps_the_breaker_closed() -> None:
    breaker = CircuitBreaker(failures=3)

    failing(breaker, 2)
    breaker.record_success()
    failing(breaker, 2)

    assert not breaker.is_open(0.0)


def test_open_breaker_allows_one_trial_after_the_retry_time() -> None:
    breaker = CircuitBreaker(failures=2, retry_after_s=300.0)
    failing(breaker, 2, now=10.0)

    assert breaker.is_open(309.9)
    assert not breaker.is_open(310.0)


def test_failed_trial_opens_the_breaker_again() -> None:
    breaker = CircuitBreaker(failures=2, retry_after_s=300.0)
    failing(breaker, 2, now=0.0)

    breaker.record_failure(300.0)

    assert breaker.is_open(599.9)
    assert not breaker.is_open(600.0)


def test_successful_trial_closes_the_breaker() -> None:
    breaker = CircuitBreaker(failures=2, retry_after_s=300.0)
    failing(breaker, 2)

    breaker.record_success()
    breaker.record_failure(301.0)

    assert not breaker.is_open(301.0)


def test_breaker_with_infinite_retry_time_stays_open() -> None:
    breaker = CircuitBreaker(failures=1, retry_after_s=math.inf)

    breaker.record_failure(0.0)

    assert breaker.is_open(1e300)


@given(st.lists(st.booleans(), max_size=50), st.integers(1, 6))
def test_breaker_is_open_only_after_enough_failures_in_a_row(outcomes: list[bool], failures: int) -> None:
    breaker = CircuitBreaker(failures=failures, retry_after_s=10.0)
    in_a_row = 0

    for is_success in outcomes:
        if is_success:
            breaker.record_success()
        else:
            breaker.record_failure(0.0)
        in_a_row = 0 if is_success else in_a_row + 1
        assert breaker.is_open(5.0) == (in_a_row >= failures)
        assert not breaker.is_open(10.0)
