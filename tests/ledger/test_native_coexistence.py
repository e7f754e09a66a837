"""Other tools that hook Python's allocators, started and stopped before and after memtools, in any order."""

import itertools
import os
import random
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

memray = pytest.mark.skipif(find_spec("memray") is None, reason="memray is not installed here")

PROGRAM = """
import sys, tracemalloc
from memtools.scopes import memory_scope
if any("memray" in step for step in sys.argv):
    import memray

    with memray.Tracker(destination=memray.FileDestination("/dev/null", overwrite=True)):
        pass  # its first use imports modules, which would be charged to the current owner

MB = 1_000_000
kept, scopes, trackers = [], [], {}

def ours_in():
    scopes.append((memory_scope("ours", meter="native").__enter__(), len(kept)))

def ours_out():
    scope, before = scopes.pop()
    scope.__exit__(None, None, None)
    usage, expected = scope.usage, (len(kept) - before) * MB
    if usage.exact:
        assert abs(usage.retained_bytes - expected) < 60_000, (sys.argv, usage, expected)
        del kept[before:]
        assert abs(scope.owner.live_bytes) < 60_000, (sys.argv, scope.owner.live_bytes)
    else:
        assert usage.note == "another tool took the hooks out of the allocator meanwhile", usage

def memray_in(**options):
    tracker = memray.Tracker(destination=memray.FileDestination("/dev/null", overwrite=True), **options)
    tracker.__enter__()
    trackers["memray"] = tracker

STEPS = {
    "ours+": ours_in, "ours-": ours_out,
    "tracemalloc+": tracemalloc.start, "tracemalloc-": tracemalloc.stop,
    "memray+": memray_in, "memray-": lambda: trackers.pop("memray").__exit__(None, None, None),
    "pymalloc memray+": lambda: memray_in(trace_python_allocators=True),
    "pymalloc memray-": lambda: trackers.pop("memray").__exit__(None, None, None),
}
for step in sys.argv[1:]:
    STEPS[step]()
    kept.append(bytearray(MB))
    rubbish = [str(number) for number in range(2000)]
    del rubbish
kept.clear()
with memory_scope("later", meter="native") as later:
    kept.append(bytearray(MB))
assert later.usage.exact and abs(later.usage.retained_bytes - MB) < 60_000, later.usage
print("fine")
"""


def run(steps: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, *steps],
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
