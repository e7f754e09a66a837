"""Leases in asyncio: nothing blocks the loop, and cancellation passes."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memtools.cluster import Cluster, LeaseTimeout, join
from memtools.cluster._sqlite import SqliteCarrier

UNIT = 10 * 2**20  # what this process uses by itself is little beside it


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with join(f"sqlite:///{tmp_path}/memory.db", budget=1000 * UNIT) as made:
        yield made


async def test_tasks_take_turns(cluster: Cluster) -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        async with cluster.lease(400 * UNIT):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1

    await asyncio.gather(*(work() for _ in range(6)))

    assert most == 2
    assert cluster.statistics().leased_bytes == 0
    assert cluster.statistics().granted == 6


async def test_cancelled_request_leaves_the_queue(cluster: Cluster) -> None:
    async with cluster.lease(900 * UNIT):
        waiting = asyncio.ensure_future(cluster.lease(900 * UNIT).__aenter__())
        async with asyncio.timeout(30):
            while not cluster.statistics().waiting:  # noqa: ASYNC110  # it is the other task's doing
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        assert cluster.statistics().waiting == 0


async def test_error_of_the_block_passes_and_gives_back(cluster: Cluster) -> None:
    with pytest.raises(KeyError):
        async with cluster.lease(900 * UNIT):
            raise KeyError

    assert cluster.statistics().leased_bytes == 0


async def test_refusal_says_what_the_pool_uses(cluster: Cluster) -> None:
    async with cluster.lease(900 * UNIT):
        with pytest.raises(LeaseTimeout, match=r"no lease of 4\.9 GiB within 0 s: the pool uses"):
            async with cluster.lease(500 * UNIT, timeout=0):
                raise AssertionError


async def test_loop_runs_on_while_a_lease_is_waited_for(cluster: Cluster) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    watching = asyncio.ensure_future(watch())
    async with cluster.lease(900 * UNIT):
        with pytest.raises(LeaseTimeout):
            await cluster.lease(500 * UNIT, timeout=0.3).__aenter__()
    watching.cancel()

    assert longest < 0.25  # a call that blocked the loop would take all of the timeout


async def test_loop_runs_on_while_a_lease_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_open = threading.Event()
    opened = SqliteCarrier.open

    def open_late(carrier: SqliteCarrier, budget_bytes: int) -> None:
        assert may_open.wait(20)
        opened(carrier, budget_bytes)

    monkeypatch.setattr(SqliteCarrier, "open", open_late)
    cluster = join(f"sqlite:///{tmp_path}/memory.db", budget=1000 * UNIT)  # as a forked child has it: not joined
    waiting = asyncio.ensure_future(cluster.lease(UNIT).__aenter__())
    await asyncio.sleep(0.05)
    may_open.set()  # by the loop, which is not blocked
    lease = await waiting

    assert cluster.statistics().held_bytes == UNIT
    await lease.__aexit__(None, None, None)
    async with cluster:
        pass  # which closes it


async def test_cancellation_passes_at_any_moment(cluster: Cluster) -> None:
    draw = random.Random(1)
    async with cluster.lease(900 * UNIT):
        for _ in range(150):
            waiting = asyncio.ensure_future(cluster.lease(900 * UNIT, timeout=600).__aenter__())
            await asyncio.sleep(draw.uniform(0.0, 0.004))
            for _ in range(draw.randrange(4)):  # in the middle of what happens when an answer comes
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(waiting), 20)

    assert cluster.statistics().leased_bytes == 0
