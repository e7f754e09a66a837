"""The price of following a task: per step, with and without scopes around it, and per owner.

Each case is one event loop that runs the same steps; what differs is who follows them. Under `traced` the peer is the
same loop with tracemalloc on, so that what is compared is the following and not the tracing. A target per step is a
promise in microseconds; the ratio that is printed is ours divided by that promise.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from _compare import Result, Timing, compare, print_results

from memtools.ledger import Driven, Meter, choose_meter, end_owner, open_owner
from memtools.scopes import memory_scope

_STEPS = 1_000
_TRACED_TARGET_NS = 5_000.0
_IDLE_TARGET_NS = 1_000.0


def run(rounds: int = 15) -> list[Result]:
    """Time steps under each driver, and opening and ending an owner."""
    return [*_steps_under_traced(rounds), *_steps_with_nothing_on(rounds), *_owners(rounds)]


async def _steps() -> None:
    for _ in range(_STEPS):
        await asyncio.sleep(0)


async def _nested(depth: int) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(depth):
            stack.enter_context(memory_scope(f"level {number}", meter="traced"))
        await _steps()


async def _in_frames() -> None:
    async with memory_scope("in its frame", meter="traced"):
        await _steps()


def _steps_under_traced(rounds: int) -> list[Result]:
    meter = choose_meter("traced")
    loop = asyncio.new_event_loop()

    def case(made: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(made())

    cases = {"bare": case(_steps)}
    for depth in (0, 1, 10, 30):
        cases[f"driven, {depth} scopes"] = case(lambda depth=depth: _driven(_nested(depth), meter))
    if sys.version_info >= (3, 12):
        cases["plain scope in its frame"] = case(_in_frames)

    meter.hold()
    try:
        timing = compare(cases, number=1, rounds=rounds, baseline="bare")
    finally:
        meter.release()
        loop.close()
    return [_per_step(timing, name, "a bare task, tracemalloc on", _TRACED_TARGET_NS) for name in list(cases)[1:]]


def _steps_with_nothing_on(rounds: int) -> list[Result]:
    meter = choose_meter("resident")
    loop = asyncio.new_event_loop()
    cases = {
        "bare": lambda: loop.run_until_complete(_steps()),
        "driven, resident": lambda: loop.run_until_complete(_driven(_steps(), meter)),
    }
    try:
        timing = compare(cases, number=3, rounds=rounds, baseline="bare")
    finally:
        loop.close()
    return [_per_step(timing, "driven, resident", "a bare task", _IDLE_TARGET_NS)]


def _driven(inner: Coroutine[Any, Any, None], meter: Meter) -> Coroutine[Any, Any, None]:
    return Driven(inner, meter, name="task")


def _per_step(timing: Timing, case: str, peer: str, target_ns: float) -> Result:
    # The difference of two medians of the same rounds: what the opening costs is spread over the steps.
    extra_ns = (timing.median_ns(case) - timing.median_ns("bare")) / _STEPS
    note = f"{extra_ns / 1000:.2f} us per step more than {peer}"
    return Result(f"a step, {case}", f"{target_ns / 1000:.0f} us", extra_ns / target_ns, 1.0, note)


def _owners(rounds: int) -> list[Result]:
    results = []
    for name, target_ns in (("traced", 60_000.0), ("resident", 20_000.0)):
        meter = choose_meter(name)
        meter.hold()
        try:
            timing = compare({"owner": lambda meter=meter: _one(meter)}, number=500, rounds=rounds, baseline="owner")
        finally:
            meter.release()
        took_ns = timing.median_ns("owner")
        note = f"{took_ns / 1000:.1f} us"
        results.append(
            Result(f"open and end an owner, {name}", f"{target_ns / 1000:.0f} us", took_ns / target_ns, 1, note)
        )
    return results


def _one(meter: Meter) -> None:
    end_owner(open_owner("call", "call", meter=meter))


if __name__ == "__main__":
    print_results(run())
