"""Run the code blocks of the README and of the docs, and make every run the same.

Property tests repeat themselves, no variable of the environment sets a meter or a limit, and the working folder is
empty.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import memtools

# A gate that fails by luck is a gate that people learn to ignore. `HYPOTHESIS_PROFILE=default` goes exploring.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

pytest_plugins = ["pytester"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    excludes=["docs/_build/**"],
).pytest()

# These prove nothing about a version of Python, and have no place for a marker of their own.
_ONCE = (
    "README.md",
    "docs/",
    "tests/cluster/test_contract.py",
    "tests/cluster/test_monitor_on_redis.py",
    "tests/cluster/test_redis_carrier.py",
    "tests/exporters/test_dashboard_and_rules.py",
    "tests/testing/test_stress_test.py::test_many_rounds_fit_into_the_report",
    "tests/conformance/test_cpython_mapping.py::TestValueHalf::test_threaded_",
    "tests/conformance/test_cpython_mapping.py::TestValueHalf::test_weak_values_destroy_while_iterating",
)

# Each of these groups has a process of its own.
_OWN_PROCESSES = (
    # They look at all objects of the process: beside all other tests, and the libraries that those load, they take
    # three to four times as long.
    ("tests/heap", "tests/leaks", "tests/testing", "tests/monitor", "tests/reports/test_report_page.py"),
    # Dask leaves threads behind, beside which no figure of tracemalloc is exact; a pool has one until it is closed.
    # And where all tests have run, a full collection may take more time than a clean-up has.
    ("tests/cluster/test_dask.py", "docs/cluster-dask.md", "docs/cluster.md", "docs/cleanup.md"),
)
_failed_before = pytest.StashKey[int]()

for name in [name for name in os.environ if name.startswith("MEMTOOLS_")]:
    del os.environ[name]

# A shell without job control starts what runs in the background with SIGINT ignored, and children inherit that. A test
# of CPython that waits for a SIGINT would never end, and its mock would record calls until the memory is full.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder: `python -c` and `-m` look there first, and must meet the package that was installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))

    yield

    os.chdir(before)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Take the hundreds of thousands of objects of collected tests and loaded libraries out of later collections.

    Visiting them took half of the time of a test that allocates or collects. Tests that walk the heap need to see them.
    """
    walking = [session.config.rootpath / path for path in _OWN_PROCESSES[0]]
    if not any(item.path == path or path in item.path.parents for item in session.items for path in walking):
        _run_one_property()
        gc.collect()
        gc.freeze()


@settings(max_examples=1)
@given(strategies.none())
def _run_one_property(_: None) -> None:
    """Have Hypothesis register its random numbers: on 3.14 it looks for referrers, and sees none that are frozen."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Where no tests are named, so that all are meant, run some first, in processes of their own."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.collectonly:
        return
    codes = [0]
    for group in _OWN_PROCESSES:
        # Without the current folder on the search path (-P), as for `pytest`: the package that was installed is tested.
        command = [sys.executable, "-P", "-m", "pytest", *config.invocation_params.args, *group]
        code = subprocess.run(command, cwd=config.rootpath, check=False).returncode
        codes.append(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
        config.option.ignore = [*(config.option.ignore or ()), *group]
    config.stash[_failed_before] = max(codes)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail where a process before this one has failed."""
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = session.config.stash.get(_failed_before, 0)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the examples of the README and of the docs, so that `-m 'not once'` leaves them out."""
    for item in items:
        if item.nodeid.startswith(_ONCE):
            item.add_marker("once")


def pytest_report_header() -> list[str]:
    """Name the copy of memtools that is tested, installed or checkout, and the implementation of its bounded lists."""
    lists = next(kind for kind in memtools.BoundedList.__mro__ if kind.__name__.endswith("ListCore"))
    return [f"memtools: {os.path.dirname(memtools.__file__)}", f"bounded lists: {lists.__name__}"]
