"""Tasks on a real Ray: counted for what they are said to need, or for what earlier ones took.

Ray leaves threads and descriptors in the process that has used it, so it has one of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("programs") / "ray_tasks.py"
MIB = 2**20

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed here"),
]


@pytest.fixture(scope="module")
def said() -> Iterator[dict[str, Any]]:
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of Unix sockets are short
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(PROGRAM), folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_size_that_is_given_holds_tasks_back(said: dict[str, Any]) -> None:
    assert said["given"] == 2  # of 400 MiB each, in 1 GiB, with three processors


def test_size_is_learned_and_holds_tasks_back(said: dict[str, Any]) -> None:
    name, value_bytes, runs, peak_bytes, exact = said["learned"]

    assert said["default"] == 1024 * MIB // 3  # a node's memory over its processors
    assert peak_bytes == pytest.approx(300 * MIB, rel=0.01)
    assert value_bytes == pytest.approx(375 * MIB, rel=0.01)
    assert (name, runs, exact) == ("__main__.take", 5, True)
    assert said["auto"] == 2


def test_error_of_a_task_passes_and_is_not_learned_from(said: dict[str, Any]) -> None:
    assert "of the program" in said["error"]
    assert said["failed"] == 0


def test_task_can_submit_tasks(said: dict[str, Any]) -> None:
    assert said["chained"]


def test_mistakes_are_refused_by_name(said: dict[str, Any]) -> None:
    assert said["refused"] == ["needs", "needs", "memory", "num_returns", "function"]


def test_ray_listens_on_the_loopback_device(said: dict[str, Any]) -> None:
    assert said["addresses"] == ["127.0.0.1"]
