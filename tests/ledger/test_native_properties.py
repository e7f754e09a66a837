"""Live bytes per owner compared with tracemalloc's, to the byte, for random programs in threads and tasks.

Another process runs them, in which tracemalloc was started first: its own memory is then below the hooks, and not
charged. A snapshot is filtered by file, and each owner's code is in a file of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

# From 3.14 on the interpreter keeps freed ints and methods in free lists, too. tracemalloc charges an object from there
# to the function that reuses it, the allocator has charged the first one, and no program can do without ints.
IN_FREE_LISTS = 4096 if sys.version_info >= (3, 14) else 0

PROGRAMS = Path(__file__).with_name("programs")

acts = st.tuples(
    st.sampled_from(["grow", "grow", "resize", "trim", "scatter"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.one_of(st.integers(0, 700), st.sampled_from([511, 512, 513, 65_535, 65_536]), st.integers(0, 300_000)),
)


@dataclass
class ChildProcess:
    """A process that runs programs and returns the figures of both."""

    process: subprocess.Popen[str]

    def run(self, how: str, program: list[Any]) -> tuple[list[int], list[int], list[int]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([how, program]) + "\n")
        self.process.stdin.flush()
        live, own, left = json.loads(self.process.stdout.readline())
        return live, own, left


@pytest.fixture(scope="module")
def child() -> Iterator[ChildProcess]:
    command = [sys.executable, "-X", "tracemalloc=1", str(PROGRAMS / "run_owner_programs.py")]
    command.append(json.dumps((PROGRAMS / "owner_functions.py").read_text()))
    # In another folder, so that `-c` imports the installed package and not the checkout.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
    ) as process:
        yield ChildProcess(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(["threads", "tasks"]),
    program=st.lists(st.lists(acts, max_size=15), min_size=1, max_size=4),
)
def test_live_bytes_of_a_tree_equal_those_of_tracemalloc(
    child: ChildProcess, how: str, program: list[list[Any]]
) -> None:
    live, own, left = child.run(how, program)

    assert live == pytest.approx([sum(own), sum(own[1:]), own[2]], rel=0, abs=IN_FREE_LISTS)
    assert left == pytest.approx([0, 0, 0], rel=0, abs=IN_FREE_LISTS)
