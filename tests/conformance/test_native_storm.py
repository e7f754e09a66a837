"""A few seconds of the storm; `native_storm.py` beside this file runs it for as long as one likes."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memtools.ledger import native_reason

SCRIPT = Path(__file__).with_name("native_storm.py")

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")


@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=["plainly", "under -X dev"])
def test_books_and_figures_agree_when_everything_happens_at_once(options: list[str]) -> None:
    done = _storm(*options, arguments=["--minutes", "0.1", "--seed", "1"])

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all held" in done.stdout


def test_a_process_ends_cleanly_in_the_middle_of_it() -> None:
    done = _storm(arguments=["--minutes", "0", "--seed", "2", "--no-tracemalloc", "--abrupt"])

    assert done.returncode == 0, done.stdout + done.stderr


def _storm(*options: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", *options, str(SCRIPT), *arguments]
    # Elsewhere: in the checkout, its sources would be found before what is installed.
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tempfile.gettempdir())
