"""Run the storm of `native_storm.py` for some seconds; `STORM_MINUTES=10 pytest tests/conformance` for longer."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memtools.ledger import native_reason

SCRIPT = Path(__file__).with_name("native_storm.py")

MINUTES = float(os.environ.get("STORM_MINUTES", "0.1"))

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")


@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=["alone", "under -X dev"])
def test_storm_leaves_ledger_and_figures_in_agreement(options: list[str]) -> None:
    done = _storm(*options, arguments=["--minutes", str(MINUTES), "--seed", "1"])

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all held" in done.stdout


def test_storm_ended_in_the_middle_exits_cleanly() -> None:
    done = _storm(arguments=["--minutes", "0", "--seed", "2", "--no-tracemalloc", "--abrupt"])

    assert done.returncode == 0, done.stdout + done.stderr


def _storm(*options: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", *options, str(SCRIPT), *arguments]
    # In another folder: in the checkout, its sources would be found before what is installed.
    folder = tempfile.gettempdir()
    timeout = 300 + MINUTES * 60
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=folder)
