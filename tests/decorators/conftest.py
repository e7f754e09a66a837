"""What the tests of decorators share: a heap from which growth shows."""

import gc

import pytest

from memtools.readings import trim_heap


@pytest.fixture
def trimmed_heap() -> None:
    """Give back what earlier tests have left: what is taken from there would not show in the process's resident memory."""
    gc.collect()
    trim_heap()
