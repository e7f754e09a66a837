"""The price of clean-up: how long the event loop waits, and the share of wall time under permanent overload.

Ten million items and a million cached values are trimmed in slices, against freeing them in one go; and two minutes of
overload, in which every pause is skipped by advancing the reclaimer's clock. Waits are measured in CPU time of the
thread: on a busy machine the wall time of a slice is mostly that of other processes.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable

from _compare import Result, print_results

from memtools.cleanup import Reclaimer, default_steps
from memtools.readings import Level, resident_bytes
from memtools.structures import BoundedList, WeakCache

_ITEMS = 10_000_000
_VALUES = 1_000_000
_SLICE_S = 0.010  # what we promise
_OVERLOAD_S = 120.0


class _Value:
    """Something that can be weakly referenced."""


def run(rounds: int = 15) -> list[Result]:
    """Measure each a few times: filling ten million places takes seconds."""
    rounds = max(1, min(rounds, 3))
    gc.disable()
    try:
        return [
            *_sliced("BoundedList of 10,000,000 objects", _list_of_many, rounds),
            *_sliced("WeakCache(strong=1,000,000), full", _full_cache, rounds),
            _overloaded(),
        ]
    finally:
        gc.enable()


def _list_of_many() -> BoundedList[object]:
    return BoundedList((object() for _ in range(_ITEMS)), _ITEMS)


def _full_cache() -> WeakCache[int, _Value]:
    cache: WeakCache[int, _Value] = WeakCache(strong=_VALUES)
    for number in range(_VALUES):
        cache[number] = _Value()
    return cache


def _sliced(what: str, make: Callable[[], object], rounds: int) -> list[Result]:
    concurrency, longest, usual, all_s = [], [], [], []
    for _ in range(rounds):
        concurrency.append(_in_one_stroke(make()))
        waits = asyncio.run(_waits_while_trimming(make()))
        longest.append(max(waits))
        usual.append(statistics.quantiles(waits, n=100, method="inclusive")[98])
        all_s.append(sum(waits))

    note = f"{statistics.median(longest) * 1e3:.1f} ms, p99 {statistics.median(usual) * 1e3:.1f} ms of CPU time"
    ratio = statistics.median(longest) / _SLICE_S
    stroke_s = statistics.median(concurrency)
    return [
        Result(f"longest wait of the loop while a {what} is trimmed", "10 ms", ratio, 1.0, note),
        Result(
            f"all slices of a {what}",
            f"letting it go in one stroke, {stroke_s * 1e3:.0f} ms",
            statistics.median(all_s) / stroke_s,
            15.0,
            f"{statistics.median(all_s) * 1e3:.0f} ms of CPU time",
        ),
    ]


def _in_one_stroke(thing: object) -> float:
    began = time.thread_time()
    thing.clear()  # type: ignore[attr-defined]  # both have it
    return time.thread_time() - began


async def _waits_while_trimming(thing: object) -> list[float]:
    reclaimer = Reclaimer(default_steps()[:1], read=resident_bytes, share=1.0)
    waits: list[float] = []
    task = asyncio.create_task(reclaimer.reclaim_async(Level.CRITICAL, stop_below=0))
    while not task.done():
        began = time.thread_time()
        await asyncio.sleep(0)
        waits.append(time.thread_time() - began)
    assert len(thing) < 100  # type: ignore[arg-type]  # both are empty, or nearly
    return waits


class _Greedy:
    """A step that takes all the time that it is given."""

    name = "greedy"
    min_level = Level.WARNING

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def __call__(self, level: Level, deadline: float, /) -> int:
        while self._clock() < deadline:
            sum(range(1_000))
        return 0


class _SkippingClock:
    """The time as it is, and the pauses that were skipped."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_s


def _overloaded() -> Result:
    clock = _SkippingClock()
    # Registered things are given deadlines by the real clock, so the first step keeps to it.
    steps = (default_steps()[0], *default_steps(clock=clock)[1:])
    reclaimer = Reclaimer([*steps, _Greedy(clock)], read=resident_bytes, clock=clock)
    recent: BoundedList[object] = BoundedList(maxlen=1_000_000)
    keep = [[] for _ in range(1_000_000)]  # a heap that makes a full collection dear

    began = clock()
    while clock() - began < _OVERLOAD_S:
        if len(recent) < 1_000:
            recent.extend(object() for _ in range(300_000))
        reclaimer.reclaim(Level.CRITICAL, stop_below=0)
        clock.skipped_s += 0.25
    wall_s = clock() - began
    spent_s = reclaimer.statistics().spent_s
    note = f"{spent_s / wall_s:.2%} of {wall_s:.0f} s, {reclaimer.statistics().passes} passes, {len(keep):,} containers"
    return Result(
        "clean-up under permanent overload, with a step that takes all it gets",
        "5 % of wall time",
        spent_s / wall_s / 0.05,
        1.0,
        note,
    )


if __name__ == "__main__":
    print_results(run())
