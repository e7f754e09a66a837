"""What the native ledger costs a program that allocates much, in time and in memory; its peers beside it.

The peers are tracemalloc and, where it is installed, memray: as it is by default, and told to see Python's allocators.

Each figure is of interpreters of their own, with and without by turns: hooks, once installed, stay. The extension is
loaded by its file, so that the price of importing memtools is in neither.
"""

import importlib.util
import statistics
import subprocess
import sys

from _compare import Result, print_results

from memtools.ledger import _native

_BEGIN = {
    "off": "",
    "tracemalloc": "import tracemalloc; tracemalloc.start(1)",
    "memray": "import memray; memray.Tracker('/dev/null').__enter__()",
    "memray, Python's allocators": """
import memray
memray.Tracker('/dev/null', trace_python_allocators=True).__enter__()
""",
    "native": """
import importlib.util
spec = importlib.util.spec_from_file_location("memtools.ledger._native", {file!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
native.install()
native.set_counting(True)
counter = native.Counter()
native.switch(counter)
""",
}
_TIMED = """
import json, time
def tuples():
    kept = []
    for number in range(60_000):
        kept.append((number, str(number), [number, number + 1]))
        if len(kept) > 5_000:
            del kept[:2_500]
document = json.dumps([{{"id": n, "name": f"name {{n}}", "values": [n * 1.5, n, None]}} for n in range(5_000)])
def loads():
    json.loads(document)
def lists():
    {{number: [float(other) for other in range(number, number + 8)] for number in range(15_000)}}
def best(work):
    times = []
    for _ in range(4):
        began = time.process_time_ns()
        work()
        times.append(time.process_time_ns() - began)
    return min(times)
{begin}
print(best({work}))
"""
_SIZED = """
{begin}
kept = [{{"a": number, "b": None}} for number in range(500_000)]
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""
_PEERS = [way for way in _BEGIN if way.partition(",")[0] not in ("off", "native", "memray")]
_PEERS += [way for way in _BEGIN if way.startswith("memray") and importlib.util.find_spec("memray") is not None]
_WORKS = {
    "tuples": "tuples, strings and lists, trimmed",
    "loads": "json.loads of 5,000 objects",
    "lists": "a dict of lists of floats",
}


def run(rounds: int = 15) -> list[Result]:
    """Return the ratios to the same program without a ledger."""
    results = []
    for work, title in _WORKS.items():
        native, peers = _ratios(_TIMED, rounds, work=work)
        note = f"processor time; {peers}"
        results.append(Result(f"native ledger: {title}", "the program without it", native, 1.15, note))
    if sys.platform == "linux":
        native, peers = _ratios(_SIZED, 3)
        note = f"resident memory of the process; {peers}"
        results.append(Result("native ledger: 500,000 dicts of two", "the program without it", native, 1.15, note))
    return results


def _ratios(program: str, rounds: int, **words: str) -> tuple[float, str]:
    native: list[float] = []
    peers: dict[str, list[float]] = {peer: [] for peer in _PEERS}
    for number in range(rounds):
        off = _figure(program, "off", **words)
        native.append(_figure(program, "native", **words) / off)
        if number < 3:  # far off, and slow
            for peer, ratios in peers.items():
                ratios.append(_figure(program, peer, **words) / off)
    beside = ", ".join(f"{peer} {statistics.median(ratios):.1f}x" for peer, ratios in peers.items())
    return statistics.median(native), beside


def _figure(program: str, way: str, **words: str) -> float:
    begin = _BEGIN[way].format(file=_native.__file__)
    command = [sys.executable, "-c", program.format(begin=begin, **words)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


if __name__ == "__main__":
    print_results(run())
