"""Pools against those of the standard library: the price of a task, and of recycling workers that leak."""

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait

from _compare import Result, compare, print_results

from memtools.pools import process_pool_scope, thread_pool_scope
from memtools.readings._shares import memory_share

_TASKS = 1000
_TASK_S = 0.02
_WORKERS = 2
_MIB = 2**20
_SPAWN = multiprocessing.get_context("spawn")

_kept: list[bytes] = []


def leak(number: int) -> tuple[int, int]:
    """Leak 1 MB, and compute for 20 ms."""
    _kept.append(b"x" * 1_000_000)
    end_at = time.thread_time() + _TASK_S
    while time.thread_time() < end_at:
        pass
    return number, os.getpid()


class _Peak:
    """The highest sum of the proportional set sizes of all child processes, read every 50 ms."""

    def __init__(self) -> None:
        self.by_case: dict[str, int] = {}

    @contextlib.contextmanager
    def of(self, case: str) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                sizes = [memory_share(child.pid or 0).pss_bytes or 0 for child in multiprocessing.active_children()]
                self.by_case[case] = max(self.by_case.get(case, 0), sum(sizes))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _run_leaking(make: Callable[[], Executor], case: str, peak: _Peak) -> None:
    with make() as pool, peak.of(case):
        answers = [future.result() for future in [pool.submit(leak, number) for number in range(_TASKS)]]
    assert Counter(number for number, _ in answers) == Counter(range(_TASKS))


def _recycling(rounds: int) -> list[Result]:
    peak = _Peak()
    makers: dict[str, Callable[[], Executor]] = {
        "kept": lambda: process_pool_scope(_WORKERS, recycle_above=None),
        "recycled": lambda: process_pool_scope(_WORKERS, recycle_above="50 MiB"),
        "bare": lambda: ProcessPoolExecutor(_WORKERS, mp_context=_SPAWN),
    }
    if _per_child_returns():
        makers["per child"] = _per_child
    cases = {name: (lambda name=name, make=make: _run_leaking(make, name, peak)) for name, make in makers.items()}
    timing = compare(cases, number=1, rounds=max(1, rounds // 5), baseline="kept")
    peaks = {name: size / _MIB for name, size in peak.by_case.items()}

    def against(peer: str) -> float:
        pairs = zip(timing.rounds_ns["recycled"], timing.rounds_ns[peer], strict=True)
        return statistics.median(own / other for own, other in pairs)

    what = "1,000 tasks that leak 1 MB and compute for 20 ms, recycle_above=50 MiB"
    results = [
        Result(what, "the same pool without recycling", against("kept"), 1 / 0.9, "time for all"),
        Result("... their highest memory", "the same", peaks["recycled"] / peaks["kept"], 0.4,
               f"PSS, {peaks['recycled']:.0f} MiB and {peaks['kept']:.0f} MiB"),
        Result("... recycled", "ProcessPoolExecutor, which keeps its workers", against("bare"), 1 / 0.9,
               f"time for all; {peaks['bare']:.0f} MiB there"),
    ]  # fmt: skip
    if "per child" in makers:
        note = f"time for all; {peaks['per child']:.0f} MiB there"
        results.append(
            Result("... recycled", "ProcessPoolExecutor(max_tasks_per_child=75)", against("per child"), 1.0, note)
        )
    return results


def _per_child() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(_WORKERS, mp_context=_SPAWN, max_tasks_per_child=75)


def _per_child_returns() -> bool:
    """Return whether an executor that replaces its workers ends: some versions of Python hang (gh-115634)."""
    pool = _per_child()
    futures = [pool.submit(abs, number) for number in range(_TASKS)]
    if not wait(futures, timeout=60).not_done:
        pool.shutdown()
        return True
    print("ProcessPoolExecutor(max_tasks_per_child=75) hangs on this Python (gh-115634): left out")
    pool.shutdown(wait=False, cancel_futures=True)
    return False


def _call_many(pool: Executor, count: int) -> None:
    for future in [pool.submit(abs, number) for number in range(count)]:
        future.result()


def _small_tasks(rounds: int) -> list[Result]:
    with (
        process_pool_scope(_WORKERS) as own,
        ProcessPoolExecutor(_WORKERS, mp_context=_SPAWN) as peer,
        thread_pool_scope(_WORKERS) as own_threads,
        ThreadPoolExecutor(_WORKERS) as peer_threads,
    ):
        for pool in (own, peer):
            list(pool.map(time.sleep, [0.5] * _WORKERS))  # all workers are there
        processes = compare(
            {"own": lambda: _call_many(own, 200), "peer": lambda: _call_many(peer, 200)},
            number=2, rounds=rounds, baseline="peer",
        )  # fmt: skip
        threads = compare(
            {"own": lambda: _call_many(own_threads, 500), "peer": lambda: _call_many(peer_threads, 500)},
            number=2, rounds=rounds, baseline="peer",
        )  # fmt: skip
    per_process = processes.median_ns("own") / 200 / 1000
    per_thread = threads.median_ns("own") / 500 / 1000
    return [
        Result("a task of a process_pool_scope that does nothing", "ProcessPoolExecutor", processes.ratio("own"), 1.0,
               f"{per_process:.0f} us per task"),
        Result("a task of a thread_pool_scope that does nothing", "ThreadPoolExecutor", threads.ratio("own"), 2.0,
               f"{per_thread:.0f} us per task, with the owner's context"),
    ]  # fmt: skip


async def _longest_gap() -> float:
    """Return the longest time between two turns of the loop while a pool ends whose task sleeps for 0.3 s."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest = 0.0
    task = asyncio.create_task(_leave_pool())
    await asyncio.sleep(0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    ticking.cancel()
    return longest


async def _leave_pool() -> None:
    async with thread_pool_scope(4) as pool:
        for _ in range(4):
            pool.submit(time.sleep, 0.3)
        await asyncio.sleep(60)


def _loop_gaps(rounds: int) -> list[Result]:
    gaps = [asyncio.run(_longest_gap()) * 1000 for _ in range(rounds)]
    note = f"median of the longest gaps; {max(gaps):.1f} ms the longest of {len(gaps)} runs"
    return [
        Result(
            "the loop, while a cancelled block waits for its threads", "10 ms", statistics.median(gaps) / 10, 1.0, note
        )
    ]


def run(rounds: int = 15) -> list[Result]:
    """Compare the pools."""
    return [*_small_tasks(rounds), *_loop_gaps(rounds), *_recycling(rounds)]


if __name__ == "__main__":
    print_results(run())
