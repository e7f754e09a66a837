"""The price of tracking a task: per step, with and without scopes around it, and per owner.

Each case is one event loop that runs the same steps; the cases differ in what tracks them. Under `tracemalloc` the peer
is the same loop with tracemalloc on, so that the tracking is compared and not the tracing. A target per step is a
promise in microseconds; the ratio that is printed is the measured time divided by that promise.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from time import process_time_ns
from typing import Any, TypeAlias

from _compare import Result, compare, print_results

from memtools.ledger import Meter, choose_meter, native_reason
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.scopes import memory_scope

_STEPS = 1_000
_TRACED_TARGET_NS = 5_000.0
_IDLE_TARGET_NS = 1_000.0
_NATIVE_TARGET_NS = 100.0
_OWNER_TARGETS_NS = {"tracemalloc": 40_000.0, "rss": 20_000.0, "native": 4_000.0}
_Maker: TypeAlias = Callable[[int], Coroutine[Any, Any, None]]


def run(rounds: int = 15) -> list[Result]:
    """Time steps under each driver, and opening and ending an owner."""
    results = [*_steps_under_traced(rounds), *_steps_with_nothing_on(rounds)]
    if not native_reason():
        results += _steps_under_native(rounds)
    return [*results, *_owners(rounds)]


async def _steps(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


async def _nested(steps: int, depth: int) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(depth):
            stack.enter_context(memory_scope(f"level {number}", meter="tracemalloc"))
        await _steps(steps)


async def _in_frame(steps: int) -> None:
    async with memory_scope("in its frame", meter="tracemalloc"):
        await _steps(steps)


def _steps_under_traced(rounds: int) -> list[Result]:
    meter = choose_meter("tracemalloc")
    made: dict[str, _Maker] = {"bare": _steps}
    for depth in (0, 1, 10, 30):
        made[f"driven, {depth} scopes"] = lambda steps, depth=depth: _driven(_nested(steps, depth), meter)
    if sys.version_info >= (3, 12):
        made["plain scope in its frame"] = _in_frame

    meter.acquire()
    try:
        return _per_step(made, rounds, "a bare task, tracemalloc on", _TRACED_TARGET_NS)
    finally:
        meter.release()


def _steps_with_nothing_on(rounds: int) -> list[Result]:
    meter = choose_meter("rss")
    made: dict[str, _Maker] = {"bare": _steps, "driven, resident": lambda steps: _driven(_steps(steps), meter)}
    return _per_step(made, rounds, "a bare task", _IDLE_TARGET_NS)


def _steps_under_native(rounds: int) -> list[Result]:
    meter = choose_meter("native")
    made: dict[str, _Maker] = {"bare": _steps, "driven, native": lambda steps: _driven(_steps(steps), meter)}
    # The ledger counts in both: what is compared is the following.
    meter.acquire()
    try:
        return _per_step(made, rounds, "a bare task, the ledger on", _NATIVE_TARGET_NS)
    finally:
        meter.release()


def _driven(inner: Coroutine[Any, Any, None], meter: Meter) -> Coroutine[Any, Any, None]:
    return TrackedCoroutine(inner, meter, name="task")


def _per_step(made: dict[str, _Maker], rounds: int, peer: str, target_ns: float) -> list[Result]:
    loop = asyncio.new_event_loop()
    cases: dict[str, Callable[[], object]] = {}
    for name, make in made.items():
        cases[name] = lambda make=make: loop.run_until_complete(make(_STEPS))
        # The same without a step: what opening and ending cost is no price of a step.
        cases[f"{name}, opening"] = lambda make=make: loop.run_until_complete(make(0))
    try:
        timing = compare(cases, number=1, rounds=rounds, baseline="bare", clock=process_time_ns)
    finally:
        loop.close()

    def step_ns(name: str) -> float:
        return (timing.median_ns(name) - timing.median_ns(f"{name}, opening")) / _STEPS

    results = []
    for name in list(made)[1:]:
        extra_ns = step_ns(name) - step_ns("bare")
        note = f"{extra_ns / 1000:.2f} us per step more than {peer}"
        results.append(Result(f"a step, {name}", f"{target_ns / 1000:g} us", extra_ns / target_ns, 1.0, note))
    return results


def _owners(rounds: int) -> list[Result]:
    results = []
    for name, target_ns in _OWNER_TARGETS_NS.items():
        if name == "native" and native_reason():
            continue
        meter = choose_meter(name)
        meter.acquire()
        try:
            timing = compare(
                {"owner": lambda meter=meter: _one(meter)},
                number=500,
                rounds=rounds,
                baseline="owner",
                clock=process_time_ns,
            )
        finally:
            meter.release()
        took_ns = timing.median_ns("owner")
        note = f"{took_ns / 1000:.1f} us"
        results.append(
            Result(f"open and end an owner, {name}", f"{target_ns / 1000:.0f} us", took_ns / target_ns, 1, note)
        )
    return results


def _one(meter: Meter) -> None:
    close_owner(open_owner("call", "call", meter=meter))


if __name__ == "__main__":
    print_results(run())
