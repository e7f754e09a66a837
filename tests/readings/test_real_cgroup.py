"""A real cgroup with a real limit, if this user may make one, and a child two levels below it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memtools.readings._cgroups import KernelFiles, find_directories, under_root

MIB = 2**20
PROGRAM = Path(__file__).parent / "programs" / "read_in_cgroup.py"


@pytest.fixture
def limited() -> Iterator[Path]:
    """Yield an empty cgroup inside one of 256 MiB."""
    cgroups = find_directories(KernelFiles(under_root("/"))) if sys.platform == "linux" else ()
    if not cgroups or not os.access(cgroups[0].directory, os.W_OK):
        pytest.skip("this user may not make a cgroup")
    # In the root: v2 allows no children with limits in a cgroup that has processes.
    roots = {cgroup.version: Path(cgroup.directory) for cgroup in cgroups}
    outer = roots[min(roots)] / f"memtools-test-{os.getpid()}"
    inner = outer / "inner"
    limit = outer / ("memory.limit_in_bytes" if 1 in roots else "memory.max")
    try:
        inner.mkdir(parents=True)
        if not limit.exists():
            pytest.skip("the memory controller is not delegated here")
        limit.write_text(str(256 * MIB))
        yield inner
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    finally:
        for directory in (inner, outer):
            _remove(directory)


def _remove(directory: Path) -> None:
    # The kernel removes a process from its cgroup a moment after the parent has waited for it.
    for _ in range(200):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return


def test_real_limit_of_an_ancestor_is_found_with_its_headroom(limited: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "MEMTOOLS_LIMIT"}

    child = subprocess.run(
        [sys.executable, str(PROGRAM), str(limited)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )

    assert child.returncode == 0, child.stderr
    value, level, path, headroom_bytes = child.stdout.split()
    assert (int(value), level) == (256 * MIB, "1")
    assert Path(path).parent == limited.parent
    assert 150 * MIB < int(headroom_bytes) < 206 * MIB
