"""CPython's own tests of asyncio pass under `python -m memtools run` as they pass alone, with every task tracked.

What they assert of tasks, factories, tracebacks, names, stacks and cancellation is what a program may rely on. All are
run, and each known difference has its reason.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from memtools.ledger import native_reason

TIMEOUT_S = 300
SUITES = (
    "test_tasks",
    "test_taskgroups",
    "test_base_events",
    "test_runners",
    "test_timeouts",
    "test_eager_task_factory",
)
# Whether the only referrer of an exception is what `get_coro()` returns. From Python 3.14 on a coroutine is among the
# referrers of its locals, and `get_coro()` returns the object that tracks it. There is one referrer all the same.
KNOWN = "test_exception_refcycles_" if sys.version_info >= (3, 14) else None
METERS = ["tracemalloc"] if native_reason() else ["native", pytest.param("tracemalloc", marks=pytest.mark.once)]


def _suite(name: str, *before: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, *before, "-m", "unittest", "-q", f"test.test_asyncio.{name}"],
        env={**os.environ, "PYTHONASYNCIODEBUG": ""}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    ran = re.search(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    failed = re.findall(r"^(?:FAIL|ERROR): (\S+ \S+)", done.stderr, re.MULTILINE)
    return ran.group(1) if ran else done.stderr[-500:], failed


@functools.cache  # the same for each meter, and some take a while
def _alone(name: str) -> tuple[str, list[str]]:
    return _suite(name)


def _size(name: str) -> str:
    load = f"unittest.defaultTestLoader.loadTestsFromName('test.test_asyncio.{name}')"
    code = f"import unittest; print({load}.countTestCases())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("name", SUITES)
def test_asyncio_suite_under_memtools_run_passes_as_alone(name: str, meter: str) -> None:
    try:
        found = importlib.util.find_spec(f"test.test_asyncio.{name}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip("this distribution of Python, or this version of it, comes without that suite")
    count, failed = _suite(name, "-m", "memtools", "run", "--meter", meter)
    if KNOWN is not None:
        failed = [test for test in failed if not test.startswith(KNOWN)]

    # Where each test of the suite was run and none failed, there is nothing that could be better without memtools.
    assert (count, failed) == (_size(name), []) or (count, failed) == _alone(name)
