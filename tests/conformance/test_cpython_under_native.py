"""CPython's own suites have the same results under the native meter."""

import subprocess
import sys
from pathlib import Path

import pytest

from memtools.ledger import native_reason

pytest.importorskip("test.list_tests", reason="this Python comes without its tests")

SCRIPT = Path(__file__).with_name("cpython_under_native.py")


@pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
@pytest.mark.parametrize("suite", ["test_list", "test_dict", "test_json"])
def test_suite_passes_the_same_with_and_without_the_ledger(suite: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), suite], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
