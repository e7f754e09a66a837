"""Tasks of many sizes on workers of Dask: placed by memory, and by Dask alone."""

import contextlib
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _compare import Result, print_results
from distributed import Client, LocalCluster, wait

from memtools.cluster.dask import MemoryPlugin, submit

_MIB = 2**20
_TASKS = 200
_WORKERS = 4
_THREADS = (2, 4)  # of each worker, so that the tasks of one can need more than it has
_LIMIT = 1024 * _MIB
_HELD_S = 0.3
_TIMEOUT_S = 120  # after which tasks that have not ended are counted as not done
_BESIDE = 4 * _MIB  # what a task needs besides


def sizes() -> list[int]:
    """Return 200 sizes from 50 to 400 MiB, always the same."""
    draw = random.Random(13)
    return [draw.randint(50, 400) * _MIB for _ in range(_TASKS)]


def take(size: int) -> int:
    """Take so much memory, touch it, and hold it for 0.3 s."""
    taken = bytearray(size)  # writes zeros
    time.sleep(_HELD_S)
    return len(taken)


@dataclass(frozen=True, slots=True)
class _Run:
    """What came of one run."""

    wall_s: float
    pauses: int
    kills: int
    lost: int

    @property
    def harm(self) -> int:
        """Workers that were paused or killed, and tasks that have not ended well after 120 s."""
        return self.pauses + self.kills + self.lost

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} s, {self.pauses} pauses, {self.kills} kills, {self.lost} tasks not done"


def _own(client: Client, size: int) -> Any:
    return submit(client, take, size, needs=size + _BESIDE, pure=False)


def _plain(client: Client, size: int) -> Any:
    return client.submit(take, size, pure=False)


def _measure(submit_one: Callable[[Client, int], Any], threads: int, *, has_plugin: bool) -> _Run:
    with (
        LocalCluster(
            processes=True, n_workers=_WORKERS, threads_per_worker=threads, memory_limit=_LIMIT,
            dashboard_address="127.0.0.1:0", silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        if has_plugin:
            client.register_plugin(MemoryPlugin())
            time.sleep(1)  # the plugin itself sets the status of its worker anew
        began_at, began = time.time(), time.perf_counter()
        futures = [submit_one(client, size) for size in sizes()]
        with contextlib.suppress(TimeoutError):
            wait(futures, timeout=_TIMEOUT_S)
        wall_s = time.perf_counter() - began
        told = client.get_events()
        lost = sum(future.status != "finished" for future in futures)
    kills = len(told.get("worker-restart-memory", ()))
    pauses = sum(
        event.get("action") == "worker-status-change" and event.get("status") == "paused"
        for topic, events in told.items()
        if topic != "all"
        for at, event in events
        if at > began_at and isinstance(event, dict)
    )
    return _Run(wall_s, pauses, kills, lost)


def _compare_with(threads: int, rounds: int) -> list[Result]:
    own: list[_Run] = []
    plain: list[_Run] = []
    for _ in range(rounds):
        plain.append(_measure(_plain, threads, has_plugin=False))
        own.append(_measure(_own, threads, has_plugin=True))
        print(f"{threads} threads, plain: {plain[-1]}\n{threads} threads, ours: {own[-1]}", flush=True)
    ratio = statistics.median(mine.wall_s / other.wall_s for mine, other in zip(own, plain, strict=True))
    harm = sum(one.harm for one in own) / max(sum(one.harm for one in plain), 1)
    what = f"{_TASKS} tasks of 50 to 400 MiB on {_WORKERS} workers of 1 GiB and {threads} threads"
    return [
        Result(what, "client.submit", ratio, 1.0, f"time for all; {own[0]}; there {plain[0]}"),
        Result("... workers paused or killed, and tasks not done", "the same", harm, 0.0, "how many"),
    ]


def run(rounds: int = 15) -> list[Result]:
    """Compare the two, in turns."""
    return [result for threads in _THREADS for result in _compare_with(threads, max(1, rounds // 10))]


if __name__ == "__main__":
    print_results(run())
