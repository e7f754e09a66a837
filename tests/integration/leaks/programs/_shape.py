"""The shape that all programs share: `python NAME.py SECONDS [leaking|fixed]`.

Each has a `step(leaks)`, plain or async, that is called twenty times a second beside some ordinary work; `VERDICT`,
what is to be said of the leaking form (`none` for the healthy ones), and `OWNER`, a pattern for who holds it.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

_INTERVAL_S = 0.05
# What a service has anyway.
_BALLAST = [{"number": number, "name": f"line {number}", "parts": [number]} for number in range(8_000)]


def play(step: Callable[[bool], Awaitable[None] | None]) -> None:
    """Run the program for as long as its arguments say."""
    seconds = float(sys.argv[1])
    leaks = sys.argv[2:] != ["fixed"]
    if asyncio.iscoroutinefunction(step):
        asyncio.run(_play_async(step, seconds, leaks))
        return
    for pause_s in _paces(seconds):
        time.sleep(pause_s)
        step(leaks)


async def _play_async(step: Callable[[bool], Awaitable[None]], seconds: float, leaks: bool) -> None:
    for pause_s in _paces(seconds):
        await asyncio.sleep(pause_s)
        await step(leaks)


def _paces(seconds: float) -> Iterator[float]:
    # By the clock: a busy machine must not change how much leaks in a second.
    begun = time.monotonic()
    for number in range(int(seconds / _INTERVAL_S)):
        _work(number)
        yield max(0.0, begun + number * _INTERVAL_S - time.monotonic())


def _work(number: int) -> None:
    lines = json.loads(json.dumps(_BALLAST[number % 7_900 :][:50]))
    sorted(lines, key=lambda line: -line["number"])
