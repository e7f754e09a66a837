"""The trend detector on real programs: `python tests/benchmarks/real_trends.py [--seconds 24]`, some minutes.

The programs are those of `tests/integration/leaks`, each in its leaking and its fixed form. A thread in each takes a
reading of real resident memory, of Python's blocks and of malloc twenty-five times a second, and the detector takes
each reading for a minute: 24 seconds are ten hours. The limit of a leaking program is what it used at its end, so that
half of its run is its half life; that of a healthy one leaves 30 MiB, which is what the others leak.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from memtools.analysis import TrendDetector

INTERVAL_S = 0.04
ROOM = 30 << 20
LEAKS = Path(__file__).resolve().parent.parent / "integration" / "leaks"

WATCHER = """
import atexit, json, runpy, sys, threading, time
from memtools.readings import resident_bytes
from memtools.readings._counters import malloc_bytes

path, interval, program, *rest = sys.argv[1:]
rows, is_over = [], threading.Event()

def watch():
    begun, number = time.monotonic(), 0
    while not is_over.wait(max(0.0, begun + number * float(interval) - time.monotonic())):
        rows.append((resident_bytes(), sys.getallocatedblocks(), malloc_bytes()))
        number += 1

thread = threading.Thread(target=watch, daemon=True)
thread.start()
sys.argv = [program, *rest]
sys.path.insert(0, program.rpartition("/")[0])
try:
    runpy.run_path(program, run_name="__main__")
finally:
    is_over.set()
    thread.join()
    with open(path, "w") as file:
        json.dump(rows, file)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found in the readings of a program.

    Attributes:
        name: the program, and its form.
        leaks: whether it leaks.
        found: the share of its run after which the floor was found to rise; None if it was not.
        confirmed: the same for a leak that the counters confirm.
    """

    name: str
    leaks: bool
    found: float | None
    confirmed: float | None


def record(program: Path, form: str, seconds: float) -> list[tuple[int, int, int | None]]:
    """Run a program and return its readings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "readings.json"
        command = [sys.executable, "-c", WATCHER, str(path), str(INTERVAL_S), str(program), str(seconds), form]
        subprocess.run(command, capture_output=True, timeout=seconds * 4 + 60, check=False)
        return [(used, blocks, malloc) for used, blocks, malloc in json.loads(path.read_text("utf-8"))]


def judge(name: str, leaks: bool, readings: list[tuple[int, int, int | None]]) -> Outcome:
    """Return when the detector finds the floor to rise, each reading taken for a minute."""
    # A program that ends gives memory back: its last second is left out.
    readings = readings[: -round(1 / INTERVAL_S)]
    used = [figure for figure, _, _ in readings]
    limit = max(used) if leaks else sorted(used)[len(used) // 10] + ROOM
    detector = TrendDetector()
    found = confirmed = None
    for minute, (resident, blocks, malloc) in enumerate(readings):
        detector.observe(minute * 60.0, resident, limit_bytes=limit, blocks=blocks or None, malloc_bytes=malloc)
        rising = detector.rising
        if rising is not None:
            found = minute / len(readings) if found is None else found
            confirmed = minute / len(readings) if confirmed is None and rising.is_leak else confirmed
    return Outcome(name, leaks, found, confirmed)


def main() -> None:
    """Print a row for each program, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--at-once", type=int, default=6)
    options = parser.parse_args()
    programs = _load_runner().find_programs(fixed=True)

    def run(program: object) -> Outcome:
        name, form, leaks = program.name, program.form, program.leaks  # type: ignore[attr-defined]
        readings = record(LEAKS / "programs" / f"{name}.py", form, options.seconds)
        return judge(f"{name} ({form})", leaks, readings)

    with ThreadPoolExecutor(options.at_once) as pool:
        outcomes = list(pool.map(run, programs))
    print("| program | leaks | found after | confirmed after |\n|---|---|---|---|")
    for one in outcomes:
        print(f"| {one.name} | {'yes' if one.leaks else 'no'} | {_share(one.found)} | {_share(one.confirmed)} |")
    leaking, healthy = [one for one in outcomes if one.leaks], [one for one in outcomes if not one.leaks]
    for what in ("found", "confirmed"):
        by = [getattr(one, what) for one in leaking]
        half, false = sum(1 for one in by if one is not None and one <= 0.5), [getattr(one, what) for one in healthy]
        print(
            f"\n{what}: {len(by) - by.count(None)} of {len(by)} leaks, {half} at half life; "
            f"{len(false) - false.count(None)} of {len(false)} healthy programs"
        )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _load_runner() -> ModuleType:
    spec = spec_from_file_location("leaks_main", LEAKS / "__main__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{LEAKS} has no __main__.py")
    module = module_from_spec(spec)
    sys.modules["leaks_main"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
