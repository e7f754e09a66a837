"""A few seconds of the stress test of the native meter; `STRESS_MINUTES=10 pytest tests/conformance` runs longer."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memtools.ledger import native_reason

SCRIPT = Path(__file__).with_name("native_stress.py")
MINUTES = float(os.environ.get("STRESS_MINUTES", "0.1"))

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")


@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=["plainly", "under -X dev"])
def test_accounts_and_figures_agree_under_concurrent_stress(options: list[str]) -> None:
    done = _run_stress(*options, arguments=["--minutes", str(MINUTES), "--seed", "1"])

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout


def test_process_ends_cleanly_during_stress() -> None:
    done = _run_stress(arguments=["--minutes", "0", "--seed", "2", "--no-tracemalloc", "--abrupt"])

    assert done.returncode == 0, done.stdout + done.stderr


def _run_stress(*options: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", *options, str(SCRIPT), *arguments]
    # In another folder, so that the installed package is imported and not the checkout.
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300 + MINUTES * 60, check=False, cwd=tempfile.gettempdir()
    )
