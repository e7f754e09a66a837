"""Leak tests and stress tests."""

from memtools.testing._find_leaks import assert_no_leaks, find_leaks
from memtools.testing._leak_report import Finding, LeakReport
from memtools.testing._stress_report import StressReport, StressRound
from memtools.testing._stress_test import StressTest

__all__ = [
    "Finding",
    "LeakReport",
    "StressReport",
    "StressRound",
    "StressTest",
    "assert_no_leaks",
    "find_leaks",
]
