"""Tests with subtests, run repeatedly; a subtest of one fails in the third run."""

import pytest

runs = []


@pytest.mark.memory_growth
def test_clean(subtests):
    for number in range(3):
        with subtests.test(number=number):
            assert number < 3


@pytest.mark.memory_growth
def test_fails_in_the_third_run(subtests):
    runs.append(1)
    for number in range(3):
        with subtests.test(number=number):
            assert (len(runs), number) != (3, 1)
