"""Random control flow that is stopped by a budget: every block that was entered is left."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

PROGRAM = Path(__file__).with_name("programs") / "control_flow.py"
# Not by `runpy`: from Python 3.15 on a traceback through code that has no `__spec__` leads to a warning.
spec = importlib.util.spec_from_file_location("control_flow", PROGRAM)
assert spec is not None
assert spec.loader is not None
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
check = program.check


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False), in_thread=st.booleans())
def test_every_block_is_left_when_a_program_is_stopped(random: Random, in_thread: bool) -> None:
    _, problems, source = check(random.randrange, in_thread=in_thread)

    assert not problems, source


def stops(*options: str, tool: tuple[str, ...] = ()) -> int:
    """Run programs in another process, where they must not fail; return how many stops there were."""
    command = [sys.executable, *tool, str(PROGRAM), "--programs", "200", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-8])


@pytest.mark.parametrize("options", [(), ("--threads",)], ids=["main", "thread"])
def test_programs_without_columns_in_their_code_are_left(options: tuple[str, ...]) -> None:
    assert stops(*options, "--seed", "5000", tool=("-X", "no_debug_ranges")) > 100


@pytest.mark.parametrize("tracer", ["settrace", "setprofile"])
@pytest.mark.parametrize("options", [(), ("--threads",)], ids=["main", "thread"])
def test_traced_programs_are_left(options: tuple[str, ...], tracer: str) -> None:
    assert stops(*options, "--seed", "6000", "--tracer", tracer) > 100
