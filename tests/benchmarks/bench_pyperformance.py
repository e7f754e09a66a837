"""The price of `python -m memtools run` for the programs of the pyperformance suite; tracemalloc for comparison.

Ten of its programs, unchanged, each in its own interpreter that is started through `python -m memtools run`, so that
the measured process is the one under the ledger; and the geometric mean of all. Needs `pip install pyperformance`;
without it there are no results.

The figure is processor time: pyperf's own worker runs the program, with the clock of the process in place of the wall
clock. `RATIO_OF=json_loads,richards` takes only some of them.
"""

import importlib.util
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _compare import Result, print_results

TARGET = 1.10
# Arguments of each program, and how often it does its work for one figure: a tenth of a second, about.
PROGRAMS: dict[str, tuple[str, list[str], int]] = {
    "json_loads": ("json_loads", [], 100),
    "json_dumps": ("json_dumps", [], 8),
    "deltablue": ("deltablue", [], 20),
    "richards": ("richards", [], 2),
    "async_tree": ("async_tree", ["none"], 1),
    "async_generators": ("async_generators", [], 1),
    "logging": ("logging", [], 1_000),
    "pickle_pure_python": ("pickle", ["--pure-python", "pickle"], 10),
    "unpack_sequence": ("unpack_sequence", [], 3_000),
    "xml_etree": ("xml_etree", [], 1),
}
WAYS = {
    "off": [],
    "native": ["-m", "memtools", "run", "--meter", "native"],
    "tracemalloc": ["-X", "tracemalloc=1"],
}


def run(rounds: int = 15) -> list[Result]:
    """Return the ratio of each program to itself without a ledger, and their geometric mean."""
    folder = _programs()
    if folder is None:
        print("bench_pyperformance: pip install pyperformance first", file=sys.stderr)
        return []
    wanted = os.environ.get("RATIO_OF", ",".join(PROGRAMS)).split(",")
    results, native, traced = [], [], []
    for name in wanted:
        native_ratio, traced_ratio = _ratios(folder, name, rounds)
        native.append(native_ratio)
        traced.append(traced_ratio)
        note = f"processor time; tracemalloc {traced_ratio:.1f}x"
        results.append(Result(f"memtools run: {name}", "the program alone", native_ratio, TARGET, note))
    note = f"processor time; tracemalloc {statistics.geometric_mean(traced):.1f}x"
    title = f"memtools run: geometric mean of {len(native)}"
    results.append(Result(title, "the programs alone", statistics.geometric_mean(native), TARGET, note))
    return results


def _programs() -> Path | None:
    found = importlib.util.find_spec("pyperformance")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "data-files" / "benchmarks"


def _ratios(folder: Path, name: str, rounds: int) -> tuple[float, float]:
    native, traced = [], []
    for number in range(rounds):
        order = ["off", "native"] if number % 2 else ["native", "off"]
        times = {way: _seconds(folder, name, way) for way in order}
        native.append(times["native"] / times["off"])
        if number < 3:  # far off, and slow
            traced.append(_seconds(folder, name, "tracemalloc") / times["off"])
    return statistics.median(native), statistics.median(traced)


def _seconds(folder: Path, name: str, way: str) -> float:
    program, arguments, loops = PROGRAMS[name]
    path = folder / f"bm_{program}" / "run_benchmark.py"
    with tempfile.TemporaryDirectory() as place:
        output = Path(place, "figures.json")
        worker = ["--worker", "--warmups", "1", "--values", "3", "--loops", str(loops), "--output", str(output)]
        command = [sys.executable, *WAYS[way], __file__, "--program", str(path), *arguments, *worker]
        # Elsewhere: in the checkout, `-m` would find its sources before what is installed.
        subprocess.run(command, capture_output=True, check=True, timeout=600, cwd=place)
        suite = json.loads(output.read_text())
    # Some programs have several parts: each counts the same, whatever it takes.
    parts = [min(run["values"]) for part in suite["benchmarks"] for run in part["runs"] if "values" in run]
    return statistics.geometric_mean(parts)


def _run_program(path: str, arguments: list[str]) -> None:
    time.perf_counter = time.process_time  # before pyperf takes it
    for name in ("pickle", "_pickle", "_compat_pickle"):
        sys.modules.pop(name, None)  # one of the programs wants to choose which of its forms is loaded
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--program"]:
        _run_program(sys.argv[2], sys.argv[3:])
    else:
        print_results(run())
