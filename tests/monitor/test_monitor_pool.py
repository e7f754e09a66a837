"""A monitor that joins a pool by its URL: in the background, once for each process, and to the harm of no work."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools import Config, Level, MemoryMonitor
from memtools.cluster import CarrierError, Cluster, Node, join
from memtools.cluster import _shared as shared_module
from memtools.cluster._cluster import look
from memtools.cluster._shared import SharedCluster
from memtools.commands._info import _environment
from memtools.commands._nodes import print_nodes
from memtools.errors import ConfigError
from memtools.monitor._sampler import process_source

GIB = 2**30
BUDGET = 100 * GIB
EVER: dict[str, Any] = {"warning": 10**15, "critical": 10**15 + 1}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/memory.db?pool=workers&budget={BUDGET}"


@pytest.fixture
def lock(tmp_path: Path, url: str) -> Iterator[sqlite3.Connection]:
    """Holds the file, so that the carrier does not answer; it exists already."""
    with join(url):
        pass
    connection = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def _wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.005)
    pytest.fail("it did not come to pass")


def _nodes(url: str) -> tuple[Node, ...]:
    try:
        return look(url)[1]
    except CarrierError:  # the pool was not made yet
        return ()


def _pids(url: str) -> list[int]:
    return [node.pid for node in _nodes(url)]


class TestJoining:
    """When the process is in the pool."""

    def test_pool_is_joined_while_the_monitor_runs(self, url: str) -> None:
        with MemoryMonitor(**EVER, cluster=url) as monitor:
            with monitor.admit(GIB):
                figures, nodes = look(url)
            _wait_for(lambda: look(url)[0].leased_bytes == 0)

        assert (figures.leased_bytes, figures.budget_bytes) == (GIB, BUDGET)
        assert [node.pid for node in nodes] == [os.getpid()]
        assert look(url)[1] == ()

    async def test_monitor_in_a_loop_joins_and_leaves(self, url: str) -> None:
        async with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
            figures, _ = look(url)

        assert figures.leased_bytes == GIB
        assert look(url)[1] == ()

    def test_monitor_that_is_not_started_is_in_no_pool(self, url: str, tmp_path: Path) -> None:
        monitor = MemoryMonitor(**EVER, cluster=url)

        with monitor.admit(BUDGET):
            assert not (tmp_path / "memory.db").exists()

    def test_monitors_of_one_process_are_one_member(self, url: str) -> None:
        with MemoryMonitor(**EVER, cluster=url), MemoryMonitor(1 << 20, 2 << 20, cluster=url) as critical:
            critical.check()
            _wait_for(lambda: [node.level for node in _nodes(url)] == [Level.CRITICAL])  # the highest of the two
            assert _pids(url) == [os.getpid()]

        assert _pids(url) == []

    def test_pool_can_be_joined_again(self, url: str) -> None:
        monitor = MemoryMonitor(**EVER, cluster=url)
        for _ in range(2):
            with monitor, monitor.admit(GIB):
                assert look(url)[0].leased_bytes == GIB

    @pytest.mark.parametrize(("name", "shown"), [("shop", "shop"), ("monitor", os.path.basename(sys.argv[0]))])
    def test_member_is_called_as_the_monitor_or_program(self, url: str, name: str, shown: str) -> None:
        with MemoryMonitor(**EVER, cluster=url, name=name) as monitor, monitor.admit(1):
            (node,) = look(url)[1]

        assert node.name in (shown, "pytest")  # `python -m pytest` is called by its folder


class TestEnvironment:
    """One setting for all monitors."""

    def test_variable_names_the_pool_of_every_monitor(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_CLUSTER", url)

        with MemoryMonitor(**EVER) as monitor, monitor.admit(GIB):
            assert look(url)[0].leased_bytes == GIB

    def test_argument_wins_over_the_variable(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_CLUSTER", f"sqlite:///{tmp_path}/other.db")

        with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
            assert look(url)[0].leased_bytes == GIB
        assert not (tmp_path / "other.db").exists()

    def test_config_gives_it_to_a_monitor(self, url: str) -> None:
        config = Config.from_env(environ={"MEMTOOLS_CLUSTER": url})

        with MemoryMonitor(**EVER, **config.monitor()) as monitor, monitor.admit(GIB):
            assert look(url)[0].leased_bytes == GIB

    def test_scripted_monitor_is_in_no_pool(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_CLUSTER", url)

        with MemoryMonitor(**EVER, source=process_source(None)) as monitor, monitor.admit(GIB):
            assert not (tmp_path / "memory.db").exists()

    def test_budget_is_by_default_80_percent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_LIMIT", "10 GiB")
        url = f"sqlite:///{tmp_path}/memory.db"

        with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
            assert look(url)[0].budget_bytes == 8 * GIB

    @pytest.mark.parametrize(
        "wrong",
        [
            "/run/app/memory.db", "mysql://user:s3cret@host", "redis://user:s3cret@host/0",
            "redis://user:s3cret@host/0?budget=80%", "sqlite:///nowhere/at/all.db", "sqlite:///a.db?budget=lots",
            "sqlite:///a.db?pool=", "sqlite:///a.db?size=8GiB", "sqlite://a.db?budget=0",
        ],
    )  # fmt: skip
    def test_bad_url_is_refused_by_the_variable(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_CLUSTER", wrong)

        with pytest.raises(ConfigError) as caught:
            MemoryMonitor()

        assert caught.value.name == "MEMTOOLS_CLUSTER"
        assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.args}"

    def test_error_of_another_variable_keeps_its_name(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMTOOLS_LIMIT", "lots")

        with pytest.raises(ConfigError, match="MEMTOOLS_LIMIT='lots'"):
            MemoryMonitor(cluster=url.replace(str(BUDGET), "50%"))


class TestWithoutAnAnswer:
    """A carrier that is away keeps nothing from starting, and fails nothing."""

    async def test_service_starts_and_works(
        self, url: str, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(shared_module, "_RETRY_S", 0.01)
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - began)

        async with MemoryMonitor(**EVER, cluster=url) as monitor:
            watching = asyncio.ensure_future(watch())
            async with monitor.admit(GIB):
                admitted_without = True
            watching.cancel()
            lock.execute("ROLLBACK")
            await asyncio.to_thread(_wait_for, lambda: _pids(url) == [os.getpid()])
            while monitor._pool.lease(1) is None:  # noqa: ASYNC110  # the thread notes it a moment later
                await asyncio.sleep(0.005)
            async with monitor.admit(GIB):
                leased = look(url)[0].leased_bytes

        assert admitted_without
        assert longest < 0.5  # the carrier takes a second to give up
        assert leased == GIB
        assert caplog.text.count("admits work without leases") == 1

    def test_thread_of_the_program_is_admitted(self, url: str, lock: sqlite3.Connection) -> None:
        with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
            admitted = True

        assert admitted

    def test_other_budget_is_told_and_tried_again(
        self, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(shared_module, "_RETRY_S", 0.01)
        other = url.replace(str(BUDGET), str(GIB))

        with join(other) as first, MemoryMonitor(**EVER, cluster=url) as monitor:
            with monitor.admit(GIB):
                refused = "as the processes that are in the pool now" in caplog.text
            first.close()
            _wait_for(lambda: _pids(url) == [os.getpid()])

        assert refused

    def test_system_without_a_thread_is_no_failure(
        self, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class NoThread(threading.Thread):
            def start(self) -> None:
                raise RuntimeError("can't start new thread")

        monkeypatch.setattr(shared_module, "OwnThread", NoThread)

        with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
            assert "can't start new thread" in caplog.text

    async def test_leaving_without_a_thread_leaves_all_the_same(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("can't start new thread")

        async with MemoryMonitor(**EVER, cluster=url) as monitor:
            async with monitor.admit(GIB):
                pass
            monkeypatch.setattr(shared_module, "call_in_own_thread", refuse)

        assert _pids(url) == []

    def test_fork_without_handlers_begins_anew(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        shared = SharedCluster(url)
        shared.attach(1, lambda: Level.NORMAL, "")
        _wait_for(lambda: shared.lease(1) is not None)
        parents = shared._stay
        assert parents is not None
        monkeypatch.setattr(shared_module.os, "getpid", lambda: 2**30)  # as a fork by C code

        assert shared.lease(1) is None
        assert not shared.is_joining
        shared.detach(1)
        shared.attach(1, lambda: Level.NORMAL, "")
        own = shared._stay
        shared.detach(1)
        monkeypatch.undo()
        parents.end()
        shared_module._inherited.remove(parents)

        assert own not in (None, parents)

    def test_stop_while_joining_leaves_nothing(self, url: str, lock: sqlite3.Connection) -> None:
        with MemoryMonitor(**EVER, cluster=url):
            pass
        lock.execute("ROLLBACK")

        _wait_for(lambda: not any("memtools-cluster" in thread.name for thread in threading.enumerate()))
        assert _pids(url) == []

    @pytest.mark.parametrize("is_async", [False, True])
    def test_admission_asks_again_where_no_answer_came(
        self, url: str, monkeypatch: pytest.MonkeyPatch, is_async: bool
    ) -> None:
        monkeypatch.setattr("memtools.cluster._cluster.ANSWER_S", 0.1)
        with MemoryMonitor(**EVER, cluster=url) as monitor:
            with monitor.admit(GIB):
                pass
            held = threading.Event()
            hold = _cluster_of(monitor)._membership._running_thread().call
            hold(lambda: held.wait(0.5))  # as a carrier that hangs
            if is_async:
                leased = asyncio.run(_admit(monitor, url))
            else:
                with monitor.admit(GIB):
                    leased = look(url)[0].leased_bytes

        assert leased == GIB


async def _admit(monitor: MemoryMonitor, url: str) -> int:
    async with monitor.admit(GIB):
        return look(url)[0].leased_bytes


def _cluster_of(monitor: MemoryMonitor) -> Cluster:
    pool = monitor._pool
    assert isinstance(pool, SharedCluster)
    assert pool._stay is not None
    assert pool._stay.cluster is not None
    return pool._stay.cluster


def test_size_that_the_budget_never_gives_is_refused(url: str) -> None:
    with MemoryMonitor(**EVER, cluster=url) as monitor:
        _wait_for(lambda: _pids(url))
        _wait_for(lambda: not monitor._pool.is_joining)
        with pytest.raises(ConfigError, match="size="):
            monitor.admit(96 * GIB)


async def test_cancelled_wait_while_joining_is_no_admission(url: str, lock: sqlite3.Connection) -> None:
    async with MemoryMonitor(**EVER, cluster=url) as monitor:
        waiting = asyncio.ensure_future(monitor.admit(GIB).__aenter__())
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        assert monitor.statistics().admissions.active == 0


def test_command_takes_the_pool_of_the_environment(url: str) -> None:
    with MemoryMonitor(**EVER, cluster=url) as monitor, monitor.admit(GIB):
        said = subprocess.run(
            [sys.executable, "-m", "memtools", "nodes", "--json"],
            env={**os.environ, "MEMTOOLS_CLUSTER": url, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert f'"pid": {os.getpid()}' in said.stdout, said.stderr


def test_command_without_a_pool_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MEMTOOLS_CLUSTER", raising=False)

    assert print_nodes(None, pool=None, as_json=False) == 2
    assert "set MEMTOOLS_CLUSTER" in capsys.readouterr().err


def test_report_for_bugs_hides_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_CLUSTER", "redis://user:s3cret@host/0")

    assert _environment()["MEMTOOLS_CLUSTER"] == "redis://***@host/0"


FORKS = """
import os, sys, threading, time
from memtools import MemoryMonitor
from memtools.cluster._cluster import look

url = sys.argv[1]
monitor = MemoryMonitor(10**15, 10**15 + 1, cluster=url)

def say():
    with monitor.admit(2**30):
        figures, nodes = look(url)
        print(figures.leased_bytes // 2**30, len(nodes), os.getpid() in [node.pid for node in nodes], flush=True)

def fork(work):
    pid = os.fork()
    if not pid:
        work()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)

def start_there():
    with monitor:
        say()

fork(start_there)  # as a worker whose parent has not started it
with monitor:
    with monitor.admit(2**30):
        fork(say)  # as one whose parent has; it joins when it first looks at its monitor
    while look(url)[0].leased_bytes:  # giving back is not waited for
        time.sleep(0.005)
    say()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_forked_child_joins_as_itself(url: str) -> None:
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert said.stdout.split("\n") == ["1 1 True", "2 2 True", "1 1 True", ""], said.stderr
