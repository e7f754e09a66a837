"""Run the code blocks of the README and of the docs, and make every run the same.

Covers: property tests that repeat themselves, and an environment in which nobody has chosen a meter or a limit for us.
Leaves to others: what no test may leave behind (`tests/conftest.py`).
"""

import os

from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import memtools

# A gate that fails by luck is a gate that people learn to ignore. `HYPOTHESIS_PROFILE=default` goes exploring.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    excludes=["docs/_build/**"],
).pytest()


for name in [name for name in os.environ if name.startswith("MEMTOOLS_")]:
    del os.environ[name]


def pytest_report_header() -> list[str]:
    """Say which copy of memtools is tested, the installed one or the checkout, and which list stands below ours."""
    seat = next(kind for kind in memtools.BoundedList.__mro__ if kind.__name__ in ("FastWindow", "PureWindow"))
    return [f"memtools: {os.path.dirname(memtools.__file__)}", f"bounded lists: {seat.__name__}"]
