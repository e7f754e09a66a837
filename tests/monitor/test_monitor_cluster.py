"""A monitor in a pool of processes: it tells its level, and what it admits is leased."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools import Level, MemoryMonitor
from memtools.cluster import Cluster, join
from memtools.errors import ConfigError

GIB = 2**30
EVER = {"warning": 10**15, "critical": 10**15 + 1}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with join(f"sqlite:///{tmp_path}/memory.db", budget=100 * GIB) as made:
        yield made


def test_what_is_admitted_is_leased_until_the_block_ends(cluster: Cluster) -> None:
    monitor = MemoryMonitor(**EVER, cluster=cluster)

    with monitor.admit(50 * GIB):
        assert cluster.statistics().leased_bytes == 50 * GIB
        with monitor.admit():  # without a size there is nothing to lease
            assert cluster.statistics().leased_bytes == 50 * GIB

    assert cluster.statistics().leased_bytes == 0


async def test_tasks_wait_for_the_budget_of_all(cluster: Cluster) -> None:
    monitor = MemoryMonitor(**EVER, cluster=cluster)
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        async with monitor.admit(40 * GIB):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1

    await asyncio.gather(*(work() for _ in range(5)))

    assert most == 2


async def test_cancelled_wait_for_a_lease_ends_the_admission(cluster: Cluster) -> None:
    monitor = MemoryMonitor(**EVER, cluster=cluster)
    with cluster.lease(90 * GIB):
        waiting = asyncio.ensure_future(monitor.admit(50 * GIB).__aenter__())
        async with asyncio.timeout(30):
            while not cluster.statistics().waiting:  # noqa: ASYNC110  # it is the other task's doing
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    assert monitor.statistics().admissions.active == 0
    assert cluster.statistics().leased_bytes == 0


def test_level_is_told_to_the_others(cluster: Cluster) -> None:
    monitor = MemoryMonitor(1 << 20, 2 << 20, cluster=cluster)
    monitor.check()

    cluster.close()
    cluster.open()  # it tells its reading at once

    assert [node.level for node in cluster.nodes()] == [Level.CRITICAL]
    assert cluster.statistics().usable_bytes == 80 * GIB
    assert cluster.pick("1 MiB") is None


def test_size_that_the_budget_never_gives_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="size="):
        MemoryMonitor(**EVER, cluster=cluster).admit(96 * GIB)


@pytest.mark.parametrize("wrong", ["memory.db", 3])
def test_what_is_no_cluster_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="cluster="):
        MemoryMonitor(cluster=wrong)


async def test_cluster_of_the_program_outlives_the_monitor(cluster: Cluster) -> None:
    async with MemoryMonitor(**EVER, cluster=cluster):
        pass

    assert len(cluster.nodes()) == 1
