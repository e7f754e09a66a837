"""The price of clean-up: how long the event loop waits, and the share of wall time under permanent overload.

Ten million items, a million cached values and two million entries are trimmed in slices, against freeing them in one
go; so are 200 MB in structures of every kind, which the tasks of the loop read and write meanwhile; and two minutes of
overload, in which every pause is skipped by advancing the reclaimer's clock. Waits are measured in CPU time of the
thread: on a busy machine the wall time of a slice is mostly that of other processes.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Iterator

from _compare import Result, print_results

from memtools import bounded_cache
from memtools.cleanup import Reclaimer, default_steps
from memtools.readings import Level, resident_bytes
from memtools.structures import BoundedDict, BoundedList, WeakCache

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
            *_sliced("BoundedDict of 1,000,000 entries", _full_dict, rounds, most=40.0),
            *_sliced("BoundedDict of 1,000,000 entries, least_recent", _full_recent_dict, rounds),
            *_under_load(rounds),
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


def _full_dict() -> BoundedDict[int, object]:
    return BoundedDict(((number, object()) for number in range(_VALUES)), _VALUES)


def _full_recent_dict() -> BoundedDict[int, object]:
    return BoundedDict(((number, object()) for number in range(_VALUES)), _VALUES, drop="least_recent")


def _body(size: int, number: int) -> bytes:
    return bytes(size) if number else b""


class _Structures:
    """Structures of every kind that hold 200 MB together, and how many entries they had."""

    def __init__(self) -> None:
        self.recent: BoundedList[bytes] = BoundedList((bytes(200) for _ in range(150_000)), 150_000)
        self.sized: BoundedList[bytes] = BoundedList((bytes(200) for _ in range(50_000)), max_bytes="100 MB")
        self.oldest: BoundedDict[int, bytes] = BoundedDict(self._entries(200_000), 200_000)
        self.used: BoundedDict[int, bytes] = BoundedDict(self._entries(150_000), 150_000, drop="least_recent")
        self.fresh: BoundedDict[int, bytes] = BoundedDict(self._entries(50_000), max_bytes="100 MB", ttl=3_600)
        self.cache: WeakCache[int, _Value] = WeakCache(strong=150_000)
        for number in range(150_000):
            self.cache[number] = _Value()
        self.call = bounded_cache(50_000)(_body)
        for number in range(50_000):
            self.call(200 + number % 50, number)

    def use(self, number: int) -> None:
        """Read and write, as a request would."""
        body = bytes(200)
        self.recent.append(body)
        self.sized.append(body)
        for entries in (self.oldest, self.used, self.fresh):
            entries[-number] = body
            entries.get(number)
        self.cache[-number] = _Value()
        self.cache.get(number)
        self.call(200, number)

    def lengths(self) -> list[int]:
        """Return how much is left in each."""
        return [len(each) for each in (self.recent, self.sized, self.oldest, self.used, self.fresh)]

    @staticmethod
    def _entries(count: int) -> Iterator[tuple[int, bytes]]:
        return ((number, bytes(200)) for number in range(count))


def _under_load(rounds: int) -> list[Result]:
    before, longest, usual = [], [], []
    for _ in range(rounds):
        started = resident_bytes()
        structures = _Structures()
        before.append(resident_bytes() - started)
        waits = asyncio.run(_waits_under_load(structures))
        longest.append(max(waits))
        usual.append(statistics.quantiles(waits, n=100, method="inclusive")[98])
        del structures
        gc.collect()

    size = f"{statistics.median(before) / 1e6:.0f} MB in structures that tasks use"
    return [
        Result(f"longest wait of the loop while {size} are trimmed", "25 ms", statistics.median(longest) / 0.025, 1.0,
               f"{statistics.median(longest) * 1e3:.1f} ms of CPU time, their own work included"),
        Result("the same, p99", "10 ms", statistics.median(usual) / 0.010, 1.0,
               f"{statistics.median(usual) * 1e3:.1f} ms of CPU time"),
    ]  # fmt: skip


async def _waits_under_load(structures: _Structures) -> list[float]:
    reclaimer = Reclaimer(default_steps()[:1], read=resident_bytes, share=1.0)
    waits: list[float] = []
    reclaim = asyncio.create_task(reclaimer.reclaim_async(Level.CRITICAL, stop_below=0))

    async def request(number: int) -> None:
        while not reclaim.done():
            structures.use(number)
            number += 1
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(request(first)) for first in (1, 10_000_000, 20_000_000, 30_000_000)]
    while not reclaim.done():
        began = time.thread_time()
        await asyncio.sleep(0)
        waits.append(time.thread_time() - began)
    await asyncio.gather(reclaim, *tasks)
    assert max(structures.lengths()) < 50_000
    return waits


def _sliced(what: str, make: Callable[[], object], rounds: int, most: float = 15.0) -> list[Result]:
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
            most,
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
