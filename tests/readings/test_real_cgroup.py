"""A real cgroup with a real limit, where this user may make one: a child is put two levels below it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memtools.readings._cgroups import KernelFiles, find_directories, under_root

MIB = 2**20
PROGRAM = """
import sys
with open(sys.argv[1] + "/cgroup.procs", "w") as members:
    members.write("0")
from memtools.readings import effective_limit, headroom
block = bytearray(b"x") * (50 << 20)
limit, room = effective_limit(), headroom()
print(limit.value_bytes, limit.level, limit.path, room.value_bytes)
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup of 256 MiB with an empty one inside of it; gives the inner."""
    places = find_directories(KernelFiles(under_root("/"))) if sys.platform == "linux" else ()
    if not places or not os.access(places[0].directory, os.W_OK):
        pytest.skip("this user may not make a cgroup")
    # The root takes children; v2 allows none with limits in a cgroup that has processes of its own.
    roots = {place.version: Path(place.directory) for place in places}
    outer = roots[min(roots)] / f"memtools-test-{os.getpid()}"
    inner = outer / "inner"
    limit = outer / ("memory.limit_in_bytes" if 1 in roots else "memory.max")
    try:
        inner.mkdir(parents=True)
        if not limit.exists():
            pytest.skip("the memory controller is not handed down here")
        limit.write_text(str(256 * MIB))
        yield inner
    except OSError as refusal:
        pytest.skip(f"this machine makes no cgroup: {refusal}")
    finally:
        for directory in (inner, outer):
            _remove(directory)


def _remove(directory: Path) -> None:
    # The kernel lets go of a member a moment after its parent has heard of its end.
    for _ in range(200):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return


def test_real_limit_of_an_ancestor_holds_and_its_room_is_counted(limited: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "MEMTOOLS_LIMIT"}

    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limited)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )

    assert child.returncode == 0, child.stderr
    value, level, path, room = child.stdout.split()
    assert (int(value), level) == (256 * MIB, "1")
    assert Path(path).parent == limited.parent
    assert 150 * MIB < int(room) < 206 * MIB
