"""A test above its peak limit, and one below."""

import pytest


@pytest.mark.memory_peak(max_bytes="1 MiB")
def test_high():
    assert bytes(3_000_000)


@pytest.mark.memory_peak("4 MiB")
def test_low():
    assert bytes(3_000_000)
