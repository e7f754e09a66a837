"""The accuracy of leak tests, and the price of a marked test.

Each kind of leak with its fixed version, and programs that look like a leak, judged repeatedly, each time in a fresh
pytest; psleak on the same functions, where it is installed; the time of a marked test against the same test unmarked,
and of pytest-memray's `limit_leaks`, where it is installed, in the same run.

Needs memtools installed (the plugin is found by its entry point), or `-p pytest_memtools` in `PYTEST_ADDOPTS`.
`MEMTOOLS_LEAK_REPEATS` says how often each version is judged, by default 20: that takes some minutes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _compare import Result, print_results

REPEATS = int(os.environ.get("MEMTOOLS_LEAK_REPEATS", "20"))
MARKED_COST = 20.0

# The holder that the failure of each leaking version must name.
HOLDERS = {
    "test_leaking_200_bytes": "test_versions.kept",
    "test_leaking_1_kib": "test_versions.kept",
    "test_leaking_64_kib": "test_versions.kept",
    "test_leaking_1_kib_every_hundredth_call": "test_versions.by_number",
    "test_leaking_a_task": "task price feed",
    "test_leaking_a_descriptor": f"descriptor {os.devnull}",
    "test_leaking_by_a_fixture": "test_versions.kept",
    "test_leaking_1_kib_marked": "test_versions.kept",
}

VERSIONS = """
import asyncio, functools, logging, os
import pytest
from memtools.testing import assert_no_leaks
from functions import *

@pytest.fixture
def connection():
    kept.append(bytes(5_000))
    yield kept[-1]

@pytest.fixture
def closed_connection():
    kept.append(bytes(5_000))
    yield kept[-1]
    kept.pop()

kept = functions.kept
by_number = functions.by_number

def test_leaking_200_bytes(): assert_no_leaks(lambda: kept.append(bytes(200)))
def test_fixed_200_bytes(): assert_no_leaks(lambda: bytes(200))
def test_leaking_1_kib(): assert_no_leaks(lambda: kept.append(bytes(1024)))
def test_fixed_1_kib(): assert_no_leaks(lambda: bytes(1024))
def test_leaking_64_kib(): assert_no_leaks(lambda: kept.append(bytes(65536)))
def test_fixed_64_kib(): assert_no_leaks(lambda: bytes(65536))

def test_leaking_1_kib_every_hundredth_call():
    calls = iter(range(10**9))
    def every_hundredth():
        number = next(calls)
        if number % 100 == 0:
            by_number[number] = bytes(1024)
    assert_no_leaks(every_hundredth)

def test_fixed_1_kib_every_hundredth_call():
    calls = iter(range(10**9))
    def every_hundredth():
        if next(calls) % 100 == 0:
            by_number["latest"] = bytes(1024)
    assert_no_leaks(every_hundredth)

def test_leaking_a_task():
    async def leaves():
        kept.append(asyncio.create_task(asyncio.Event().wait(), name=f"price feed {len(kept)}"))
        await asyncio.sleep(0)
    async def check():
        before = len(kept)
        try:
            await assert_no_leaks(leaves, calls=20)
        finally:
            for task in kept[before:]:
                task.cancel()
            await asyncio.gather(*kept[before:], return_exceptions=True)
    asyncio.run(check())

def test_fixed_a_task():
    async def awaits():
        await asyncio.create_task(asyncio.sleep(0), name="price feed")
    asyncio.run(assert_no_leaks(awaits, calls=20))

def test_leaking_a_descriptor():
    opened = []
    try:
        assert_no_leaks(lambda: opened.append(os.open(os.devnull, os.O_RDONLY)), calls=10)
    finally:
        for number in opened:
            os.close(number)

def test_fixed_a_descriptor(): assert_no_leaks(lambda: os.close(os.open(os.devnull, os.O_RDONLY)), calls=10)

@pytest.mark.memory_growth
def test_leaking_by_a_fixture(connection): assert connection

@pytest.mark.memory_growth
def test_fixed_by_a_fixture(closed_connection): assert closed_connection

@pytest.mark.memory_growth(max_bytes="100 B")
def test_leaking_1_kib_marked(): kept.append(bytes(1024))

@pytest.mark.memory_growth(max_bytes="100 B")
def test_fixed_1_kib_marked(): bytes(1024)

@pytest.mark.parametrize("healthy", HEALTHY)
def test_healthy(healthy): assert_no_leaks(functions.__dict__[healthy])

@pytest.mark.memory_growth
@pytest.mark.parametrize("healthy", HEALTHY)
def test_healthy_marked(healthy): functions.__dict__[healthy]()
""".replace("from functions import *", "import functions\nfrom functions import HEALTHY")

FUNCTIONS = """
import asyncio, functools, itertools, logging

kept, by_number = [], {}
HEALTHY = ["runs_a_loop", "fills_a_cache", "imports", "logs"]
_numbers = itertools.count()

@functools.lru_cache(maxsize=5_000)
def _remembered(number):
    return [number]

def runs_a_loop():
    asyncio.run(asyncio.sleep(0))

def fills_a_cache():
    _remembered(next(_numbers))

def imports():
    import decimal, xml.dom.minidom
    decimal.Decimal(1)

def logs():
    logging.getLogger("versions.leaks").isEnabledFor(logging.DEBUG)
"""

WATCHER = """
import json, time
import pytest

seconds, outcomes, said = {}, {}, {}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    begun = time.perf_counter()
    try:
        return (yield)
    finally:
        seconds[item.name] = time.perf_counter() - begun

def pytest_runtest_logreport(report):
    name = report.nodeid.split("::")[-1]
    if report.failed or name not in outcomes:
        outcomes[name] = report.outcome
        said[name] = report.longreprtext

def pytest_sessionfinish():
    with open("figures.json", "w") as file:
        json.dump({"seconds": seconds, "outcomes": outcomes, "said": said}, file)
"""

PSLEAK = """
import sys, functions, psleak
for name in functions.HEALTHY:
    try:
        psleak.MemoryLeakTestCase().execute(functions.__dict__[name])
        print(name, "passed")
    except psleak.Error:
        print(name, "failed")
"""

BODY = "    rows = [{'number': number, 'name': str(number)} for number in range(ROWS)]\n    assert len(rows) == ROWS\n"


def run(rounds: int = 5) -> list[Result]:
    """Return how many verdicts were wrong in all repeats, and what a marked test costs."""
    return [*_verdicts(REPEATS), *_costs(max(rounds, 3))]


def _verdicts(repeats: int) -> list[Result]:
    wrong: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    fooled: Counter[str] = Counter()
    for _ in range(repeats):
        figures = _pytest({"test_versions": VERSIONS, "functions": FUNCTIONS})
        for name, outcome in figures["outcomes"].items():
            kind = next(kind for kind in ("leaking", "fixed", "healthy") if f"test_{kind}" in name)
            kinds[kind] += 1
            is_wrong = _is_wrong(name, outcome, figures["said"][name])
            wrong[kind] += is_wrong
            if is_wrong:
                print(f"WRONG: {name} {outcome}\n{figures['said'][name]}", file=sys.stderr)
        fooled += _psleak()
    beside = f"; psleak fails {dict(fooled)} of {repeats} each" if find_spec("psleak") else ""
    return [
        Result("leaking versions that pass, or whose holder is not named", "none", wrong["leaking"], 0.0,
               f"of {kinds['leaking']} in {repeats} repeats"),
        Result("fixed versions that fail", "none", wrong["fixed"], 0.0, f"of {kinds['fixed']}"),
        Result("healthy ones that fail", "none", wrong["healthy"], 0.0, f"of {kinds['healthy']}{beside}"),
    ]  # fmt: skip


def _is_wrong(name: str, outcome: str, said: str) -> bool:
    if "leaking" in name:
        return outcome != "failed" or HOLDERS[name] not in said
    return outcome != "passed"


def _psleak() -> Counter[str]:
    if not find_spec("psleak"):
        return Counter()
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, {"functions": FUNCTIONS, "beside": PSLEAK})
        done = subprocess.run(
            [sys.executable, "beside.py"],
            cwd=folder,
            env={**os.environ, "PYTHONMALLOC": "malloc", "PYTHONUNBUFFERED": "1"},  # psleak insists on both
            capture_output=True,
            text=True,
            check=False,
        )
    verdicts = [line.split() for line in done.stdout.splitlines()]
    if not verdicts:
        raise RuntimeError(done.stdout + done.stderr)
    return Counter(words[0] for words in verdicts if words[1:] == ["failed"])


def _costs(rounds: int) -> list[Result]:
    results: list[Result] = []
    for rows, note in ((20_000, "a body of some 10 ms"), (200, "a body of some 0.1 ms")):
        ratios = [_cost(rows) for _ in range(rounds)]
        own = statistics.median(ratio["marked"] for ratio in ratios)
        beside = ""
        if all("memray" in ratio for ratio in ratios):
            beside = f"; limit_leaks, one run: {statistics.median(ratio['memray'] for ratio in ratios):.1f}x"
        title = "memory_growth(warmup=2, repeats=5)"
        results.append(Result(title, "the same test unmarked", own, MARKED_COST, f"eight runs of {note}{beside}"))
    return results


def _cost(rows: int) -> dict[str, float]:
    marks = {"plain": "", "marked": "@pytest.mark.memory_growth(repeats=5, warmup=2)\n"}
    if find_spec("pytest_memray"):
        marks["memray"] = "@pytest.mark.limit_leaks('100 MB')\n"
    tests = [
        f"{mark}def test_{name}_{number}():\n{BODY}" for number in range(10) for name, mark in marks.items()
    ]  # one after the other: load slows down consecutive runs alike
    source = "\n".join(["import pytest", f"ROWS = {rows}", *tests])
    seconds = _pytest({"test_costs": source})["seconds"]
    plain = [seconds[f"test_plain_{number}"] for number in range(10)]
    return {
        name: statistics.median(seconds[f"test_{name}_{number}"] / plain[number] for number in range(1, 10))
        for name in marks
    }


def _pytest(files: Mapping[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, {**files, "conftest": WATCHER})
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        path = Path(folder, "figures.json")
        if not path.exists():
            raise RuntimeError(done.stdout + done.stderr)
        figures: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return figures


def _write(folder: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path(folder, f"{name}.py").write_text(text, "utf-8")


if __name__ == "__main__":
    print_results(run())
