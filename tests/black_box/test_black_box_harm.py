"""What may happen to the file while a program runs: the program lives on, with right figures."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from memtools.ledger import native_reason

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="files are cut under a program on Linux"),
    pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}"),
]

LONG = pytest.mark.skipif(os.environ.get("BLACK_BOX_LONG") != "1", reason="BLACK_BOX_LONG=1 runs it")
End = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    "what",
    [
        "cut", "garbage", "cut faulthandler-before", "cut faulthandler-after", "cut faulthandler-after seen",
        *(pytest.param(what, marks=LONG) for what in ("half", "unlink", "cut unlink")),
    ],
)  # fmt: skip
def test_program_lives_on_when_its_file_is_harmed(what: str, end: End) -> None:
    done = end("harm", what)

    assert done.returncode == 0, done.stderr
    assert "held True" in done.stdout
    assert done.stdout.endswith("lives\n")
    assert ("counts False" in done.stdout) is ("cut" in what or "half" in what)
    shows_traceback = what == "cut faulthandler-after"  # until the next reading its handler is the first one
    assert ("Fatal Python error" in done.stderr) is shows_traceback


def test_descriptors_closed_by_the_program_are_not_written(end: End) -> None:
    done = end("harm", "closed")

    assert done.returncode == 0, done.stderr
    assert "untouched True" in done.stdout


@pytest.mark.parametrize(
    "what",
    [
        "faulthandler-before", "faulthandler-seen",
        *(pytest.param(what, marks=LONG) for what in ("alone", "faulthandler-after", "sent")),
    ],
)  # fmt: skip
def test_fault_of_the_program_ends_it_as_alone(what: str, end: End) -> None:
    done = end("bus_error", what)

    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) is ("faulthandler" in what)
