"""Check that the guards fail the tests that leave something behind, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("guarded_suite.py")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints about each test of the guarded suite, on a line of its own."""
    suite = tmp_path_factory.mktemp("guarded")
    guards = Path(__file__).with_name("conftest.py").read_text()
    (suite / "conftest.py").write_text(guards.replace("_TIMEOUT_S = 10.0", "_TIMEOUT_S = 0.2"))
    (suite / "test_guarded.py").write_text(SUITE.read_text())
    (suite / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nmarkers = leaves(what, reason): excused\n")

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rEpf", "--tb=short", str(suite)]
    environment = {**os.environ, "COLUMNS": "400", "PYTEST_ADDOPTS": ""}  # the summary cuts its lines at the width
    result = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, timeout=120)
    return result.stdout


@pytest.mark.parametrize(
    ("test", "what"),
    [
        ("test_leaves_a_thread", "left behind: thread <Thread(left-thread"),
        ("test_leaves_a_tracemalloc_session", "left behind: tracemalloc"),
        ("test_leaves_a_scope", "left behind: scope"),
        ("test_leaves_a_scope", "left-scope"),
        ("test_leaves_a_subscription", "left behind: subscription Subscription(print)"),
        ("test_leaves_a_task", "left behind: task left-task"),
        ("test_gives_no_reason", "needs one of"),
    ],
)
def test_guard_names_the_test_and_what_it_left(verdicts: str, test: str, what: str) -> None:
    assert [line for line in verdicts.splitlines() if line.startswith("ERROR") and test in line and what in line]


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed on Linux only")
def test_guard_names_the_descriptor_that_was_left(verdicts: str) -> None:
    assert "test_leaves_a_descriptor - Failed: left behind: descriptor" in verdicts


@pytest.mark.parametrize("test", ["test_excused", "test_innocent"])
def test_guard_passes_tests_that_clean_up_or_are_exempt(verdicts: str, test: str) -> None:
    summary = [
        line for line in verdicts.splitlines() if test in line and line.startswith(("ERROR", "FAILED", "PASSED"))
    ]

    assert summary
    assert all(line.startswith("PASSED") for line in summary)
