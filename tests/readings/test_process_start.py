"""When another process has started: the same as long as it lives, and nothing once it has ended."""

import os
import subprocess
import sys

import pytest

from memtools.readings._shares import process_start


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no cat")
def test_start_is_the_same_until_the_process_has_ended() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        started = process_start(other.pid)
        again = process_start(other.pid)
    assert started == again != ""
    assert process_start(other.pid) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the state of an ended process is in /proc")
def test_process_that_has_not_been_waited_for_has_no_start() -> None:
    other = subprocess.Popen(["true"])
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)

    assert process_start(other.pid) == ""

    other.wait()
