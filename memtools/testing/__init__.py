"""Tests that fail on leaks."""

from memtools.testing._find_leaks import assert_no_leaks, find_leaks
from memtools.testing._reports import Finding, LeakReport

__all__ = [
    "Finding",
    "LeakReport",
    "assert_no_leaks",
    "find_leaks",
]
