"""The price of a task in a `task_scope`: created, run without doing anything, ended; against `asyncio.TaskGroup`."""

import asyncio
from collections.abc import Callable
from time import process_time_ns

from _compare import Result, compare, print_results

from memtools.ledger import native_reason
from memtools.scopes import task_scope

_TASKS = 200


async def _nothing() -> None:
    pass


async def _in_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_TASKS):
            tasks.create_task(_nothing())


async def _in_scope(limit: int | None = None, meter: str = "rss") -> None:
    async with task_scope(limit, meter=meter) as tasks:
        for _ in range(_TASKS):
            tasks.create_task(_nothing())


def run(rounds: int = 15) -> list[Result]:
    """Time scopes of 200 tasks on one loop."""
    loop = asyncio.new_event_loop()
    run_here = loop.run_until_complete
    cases: dict[str, Callable[[], object]] = {
        "group": lambda: run_here(_in_group()),
        "scope": lambda: run_here(_in_scope()),
        "places": lambda: run_here(_in_scope(limit=_TASKS)),
        "row": lambda: run_here(_in_scope(limit=8)),
    }
    try:
        timing = compare(cases, number=20, rounds=rounds, baseline="group", clock=process_time_ns)
        # Apart from the others: tracemalloc makes whatever stands beside it slower, too.
        traced = compare(
            {"group": cases["group"], "tracemalloc": lambda: run_here(_in_scope(meter="tracemalloc"))},
            number=3,
            rounds=rounds,
            baseline="group",
            clock=process_time_ns,
        )
        native = None
        if not native_reason():
            native = compare(
                {"group": cases["group"], "native": lambda: run_here(_in_scope(meter="native"))},
                number=5,
                rounds=rounds,
                baseline="group",
                clock=process_time_ns,
            )
    finally:
        loop.close()

    peer = "asyncio.TaskGroup"
    note = f"{timing.median_ns('scope') / _TASKS / 1000:.1f} us per task that does nothing"
    results = [
        Result('a task of a task_scope(meter="rss")', peer, timing.ratio("scope"), 1.6, note),
        Result("... with a limit that is not reached", peer, timing.ratio("places"), 2.0, "time per task"),
        Result("... with a limit of 8, most wait their turn", peer, timing.ratio("row"), 3.0, "time per task"),
        Result(
            "... with an exact account per task",
            peer,
            traced.ratio("tracemalloc"),
            60.0,
            "tracemalloc meter, for information: tracemalloc",
        ),
    ]
    if native is not None:
        # An owner is opened, followed and ended for each: what tells tasks apart, and what a no-op task shows most of.
        took_us = native.median_ns("native") / _TASKS / 1000
        words = f"native meter: {took_us:.1f} us per task"
        results.insert(3, Result("... with an exact account per task", peer, native.ratio("native"), 1.6, words))
    return results


if __name__ == "__main__":
    print_results(run())
