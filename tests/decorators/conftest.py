"""What the tests of decorators share: a heap from which growth shows."""

import gc

import pytest

from memtools.readings import trim_heap


@pytest.fixture
def trimmed_heap() -> None:
    """Give back what earlier tests have left: growth into it would not show in the resident memory."""
    gc.collect()
    trim_heap()
