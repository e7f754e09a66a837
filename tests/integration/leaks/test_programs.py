"""Some of the programs that leak, for some seconds each, five at a time.

All of them, for 20 and 40 seconds each, are run by hand: `python tests/integration/leaks` (docs/performance.md).

Chosen is one program for each way in which something is found: a container with a named root, one held by a task, a
type without a container (a cycle with the collector off), C's malloc, mappings; and the healthy programs whose memory
goes up and down or fills up.
"""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parent
SECONDS = 10
LEAKING = (
    "cycles_with_gc_off", "lru_cache_on_a_method", "mmaps", "native_malloc", "results_by_request", "tasks_in_a_set",
)  # fmt: skip
HEALTHY = ("healthy_churn", "healthy_cycles_with_gc_on", "healthy_fragmentation", "healthy_re_cache")


@pytest.mark.skipif(sys.platform != "linux", reason="what C's malloc has in use is known on Linux only")
def test_leaks_are_found_and_their_holders_named() -> None:
    programs = [word for name in (*LEAKING, *HEALTHY) for word in ("--only", name)]

    done = subprocess.run(
        [sys.executable, str(FOLDER), "--seconds", str(SECONDS), "--at-once", "5", "--meter", "rss",
         "--named", "4", "--misses", "1", *programs],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_program_runs_in_its_fixed_form() -> None:
    # The fixed forms: the leaking ones share all but a line with them.
    programs = sorted((FOLDER / "programs").glob("[!_]*.py"))
    if importlib.util.find_spec("prometheus_client") is None:
        programs = [program for program in programs if program.stem != "metric_labels"]

    with ThreadPoolExecutor(4) as pool:
        failed = [failure for failure in pool.map(_failure_of, programs) if failure]

    assert len(programs) >= 32
    assert failed == []


def _failure_of(program: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(program), "0.1", "fixed"], capture_output=True, text=True, timeout=120, check=False
    )
    return f"{program.stem}: {done.returncode} {done.stderr}" if done.returncode or done.stderr else ""


def test_program_under_run_leaks_keeps_exit_code_and_threads(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, threading, time\n"
        "print(threading.active_count(), [one.name for one in threading.enumerate()])\n"
        "time.sleep(0.5)\n"
        "sys.exit(7)\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "memtools", "run", "--leaks", "--json", str(tmp_path / "report.json"), str(program)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (7, "1 ['MainThread']\n")
    assert done.stderr.rstrip().splitlines()[-1].startswith("cannot tell: ")
    assert '"verdict": "unknown"' in (tmp_path / "report.json").read_text()
