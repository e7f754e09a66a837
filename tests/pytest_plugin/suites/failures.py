"""Tests that fail, fail as expected, or skip while they are measured."""

import pytest

runs = []


@pytest.mark.memory_growth
def test_fails_at_the_third_run():
    runs.append(1)
    assert len(runs) < 3


@pytest.mark.memory_growth
@pytest.mark.xfail(strict=True)
def test_expected_failure():
    raise LookupError


@pytest.mark.memory_growth
def test_skipped():
    pytest.skip("not here")
