"""Fixtures of the decorator tests."""

import gc

import pytest

from memtools.readings import trim_heap


@pytest.fixture
def trimmed_heap() -> None:
    """Return free heap memory to the system: an allocation that reuses it would not grow the resident memory."""
    gc.collect()
    trim_heap()
