"""Other tools that hook Python's allocators, started and stopped before and after memtools, in any order."""

import itertools
import os
import random
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

PROGRAM = Path(__file__).with_name("programs") / "start_and_stop_tools.py"

memray = pytest.mark.skipif(find_spec("memray") is None, reason="memray is not installed here")


def run(steps: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(PROGRAM), *steps],
        capture_output=True, text=True, timeout=120, check=False, cwd=tempfile.gettempdir(), env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, (steps, done.stderr)
    assert done.stdout.split() == ["fine"]


def orders(*tools: str) -> list[list[str]]:
    """Return all orders of starts and stops in which each tool starts before it stops."""
    steps = [step for tool in tools for step in (f"{tool}+", f"{tool}-")]
    return [
        list(order)
        for order in itertools.permutations(steps)
        if all(order.index(f"{tool}+") < order.index(f"{tool}-") for tool in tools)
    ]


@pytest.mark.parametrize("steps", orders("ours", "tracemalloc"), ids=" ".join)
def test_tracemalloc_starts_and_stops_in_any_order(steps: list[str]) -> None:
    run(steps)


@memray
@pytest.mark.parametrize("tool", ["memray", "pymalloc memray"])
@pytest.mark.parametrize("order", range(6))
def test_memray_starts_and_stops_in_any_order(tool: str, order: int) -> None:
    run(orders("ours", tool)[order])


@memray
@pytest.mark.parametrize("seed", range(6))
def test_all_three_start_and_stop_in_random_order(seed: int) -> None:
    chance = random.Random(seed)

    run(chance.choice(orders("ours", "tracemalloc", chance.choice(["memray", "pymalloc memray"]))))


@memray
def test_both_tools_start_and_stop_many_times() -> None:
    chance = random.Random(7)
    found = orders("ours", "tracemalloc", "memray")

    run([step for _ in range(4) for step in chance.choice(found)])
