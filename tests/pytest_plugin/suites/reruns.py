"""Tests that a plugin runs again after a failure, measured and not."""

import pytest

kept = []
calls = dict.fromkeys(("plain", "growth", "setup", "leak"), 0)


def count(name):
    calls[name] += 1
    return calls[name]


@pytest.fixture
def fails_at_first():
    assert count("setup") > 1


@pytest.mark.flaky(2)
def test_plain():
    assert count("plain") > 1


@pytest.mark.flaky(2)
@pytest.mark.memory_growth
def test_growth():
    assert count("growth") > 2


@pytest.mark.flaky(2)
@pytest.mark.memory_growth
def test_setup(fails_at_first):
    pass


@pytest.mark.flaky(1)
@pytest.mark.memory_growth
def test_leak():
    kept.append(bytes(5_000))
