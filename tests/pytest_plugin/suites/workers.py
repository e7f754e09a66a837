"""Tests for the workers of pytest-xdist, one of which leaks."""

import pytest

kept = []


@pytest.mark.memory_growth
@pytest.mark.parametrize("number", range(4))
def test_fixed(number): ...


@pytest.mark.memory_growth
def test_leaking():
    kept.append(bytes(5_000))
