"""How far a runaway gets beyond its budget before it is stopped: twelve kinds, in plain code, in a task, in a thread.

Each runs under a budget of 50 MiB in its own interpreter; the figure is the peak at which it is stopped.

A ratio is the overshoot divided by what is promised, a tenth of the budget and 1 MiB. Alone, `python
tests/benchmarks/bench_overshoot.py [ROUNDS]` prints the peaks in MiB. A runaway that was not stopped within five
budgets ends by itself, which its peak shows.
"""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from _compare import Result

MIB = 2**20
BUDGET = 50 * MIB
PROMISED = BUDGET // 10 + MIB
LIMIT = 5 * BUDGET
PLACES = ("sync", "async", "thread")


def _turns(size: int) -> Iterator[int]:
    # Enough to get far above the budget if it is not stopped: the program must end in any case.
    return iter(range(LIMIT // size))


class Node:
    """One of a chain."""

    def __init__(self, before: "Node | None") -> None:
        self.before = before
        self.name = "x" * 50


def list_of_dicts() -> object:
    return [{"a": number} for number in _turns(250)]


def append_strings() -> object:
    kept = []
    for number in _turns(60):
        kept.append(str(number))  # noqa: PERF401  # the loop is the point
    return kept


def grow_bytearray() -> object:
    kept = bytearray()
    for _ in _turns(10_000):
        kept.extend(b"x" * 10_000)
    return kept


def grow_list_by_slices() -> object:
    kept: list[int] = []
    for _ in _turns(32_000):
        kept[len(kept) :] = range(1000)
    return kept


def fill_dict() -> object:
    return {number: "x" * 500 + str(number) for number in _turns(600)}


def fill_set() -> object:
    return {f"{'x' * 500} {number}" for number in _turns(600)}


def join_a_generator() -> object:
    return "".join("x" * 1000 + str(number) for number in _turns(1_100))


def sort_with_a_key() -> object:
    return sorted(_turns(1_100), key=lambda number: "x" * 1000 + str(number))


def parse_documents() -> object:
    document = json.dumps([{"id": number, "name": "x" * 20} for number in range(200)])
    return [json.loads(document) for _ in _turns(60_000)]


def chain_objects() -> object:
    node = None
    for _ in _turns(200):
        node = Node(node)
    while node is not None:  # or its end would be a recursion
        node = node.before
    return node


def tuples_of_tuples() -> object:
    kept: list[tuple[object, ...]] = []
    for number in _turns(300):
        kept.append((number, [None] * 20, *kept[-1:]))
    return kept


def consume_iterators() -> object:
    most = LIMIT // 60
    return list(map(str, itertools.takewhile(lambda number: number < most, itertools.count())))


RUNAWAYS: dict[str, Callable[[], object]] = {
    runaway.__name__: runaway
    for runaway in (
        list_of_dicts, append_strings, grow_bytearray, grow_list_by_slices, fill_dict, fill_set, join_a_generator,
        sort_with_a_key, parse_documents, chain_objects, tuples_of_tuples, consume_iterators,
    )
}  # fmt: skip


def run(rounds: int = 3) -> list[Result]:
    """Return the overshoot of each kind in each place, in units of what is promised."""
    results = []
    for name in RUNAWAYS:
        for place in PLACES:
            peak, told = _median(name, place, rounds)
            note = f"peak of {peak / MIB:.1f} MiB, budget 50 MiB; {told}"
            overshoot = max(0.0, (peak - BUDGET) / PROMISED)
            results.append(Result(f"{name}, {place}", "a tenth of the budget and 1 MiB", overshoot, 1.0, note))
    return results


def _median(name: str, place: str, rounds: int) -> tuple[float, str]:
    peaks, tellings = [], []
    for _ in range(min(rounds, 5)):
        command = [sys.executable, __file__, "--run", name, place]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peak, told = done.stdout.split(maxsplit=1)
        peaks.append(int(peak))
        tellings.append(told.strip())
    return statistics.median(peaks), max(set(tellings), key=tellings.count)


def _peak(name: str, place: str) -> tuple[int, str]:
    from memtools.scopes import memory_scope

    if place == "async":
        return asyncio.run(_peak_of_task(name))
    if place == "thread":
        found: list[tuple[int, str]] = []
        thread = threading.Thread(target=lambda: found.append(_peak(name, "sync")))
        thread.start()
        thread.join()
        return found[0]

    told = "not stopped"
    try:
        with memory_scope("runaway", meter="native", budget=BUDGET) as opened:
            told = _stopped(name)
    except Exception as error:  # at the end of the block
        told = f"told at the end: {type(error).__name__}"
    return opened.usage.peak_bytes, told


async def _peak_of_task(name: str) -> tuple[int, str]:
    from memtools.decorators import memory_budget
    from memtools.scopes import task_scope

    told: list[str] = []

    @memory_budget(BUDGET, meter="native")
    async def work() -> None:
        await asyncio.sleep(0)
        told.append(_stopped(name))

    async with task_scope(meter="native", on_error="record") as tasks:
        await tasks.spawn(work(), name="runaway")
    return tasks.usage.peak_bytes, told[0] if told else "told at a step, or at the end"


def _stopped(name: str) -> str:
    from memtools.errors import BudgetExceeded

    try:
        RUNAWAYS[name]()
    except BudgetExceeded:
        return "stopped in flight"
    return "not stopped"


def _print_table(rounds: int) -> None:
    print(f"CPython {sys.version.split()[0]}: peak in MiB at which a runaway under a budget of 50 MiB is stopped")
    print(f"| kind | {' | '.join(PLACES)} |\n|---|{'---|' * len(PLACES)}")
    for name in RUNAWAYS:
        cells = [_median(name, place, rounds) for place in PLACES]
        words = [f"{peak / MIB:.1f}{'' if told == 'stopped in flight' else f' ({told})'}" for peak, told in cells]
        print(f"| {name} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(*_peak(*sys.argv[2:]))
    else:
        _print_table(int(sys.argv[1]) if sys.argv[1:] else 3)
