"""Run the code blocks of the README and of the docs, and make every run the same.

Covers: property tests that repeat themselves, an environment in which nobody has chosen a meter or a limit for us, and
an empty working folder.
Leaves to others: what no test may leave behind (`tests/conftest.py`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
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


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder: `python -c` and `-m` look there first, and must meet the package that was installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))

    yield

    os.chdir(before)


def pytest_report_header() -> list[str]:
    """Say which copy of memtools is tested, the installed one or the checkout, and which list stands below ours."""
    seat = next(kind for kind in memtools.BoundedList.__mro__ if kind.__name__ in ("FastWindow", "PyBoundedListCore"))
    return [f"memtools: {os.path.dirname(memtools.__file__)}", f"bounded lists: {seat.__name__}"]
