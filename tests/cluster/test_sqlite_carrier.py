"""The embedded carrier: what goes wrong with a file, and that no call outlasts its time."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools.cluster import CarrierError, Cluster, LeaseTimeout, join
from memtools.cluster import _sqlite as sqlite_module
from memtools.cluster._carrier import HeldLease, LeaseRequest, Node
from memtools.cluster._cluster import look
from memtools.cluster._sqlite import SqliteCarrier
from memtools.errors import ConfigError
from memtools.readings import Level

MIB = 2**20
BUDGET = 1000 * MIB


def _node(key: str = "n", used: int = 0, level: Level = Level.NORMAL, pid: int = 0) -> Node:
    return Node(key, key, "host", pid, used, None, None, level)


@pytest.fixture
def carrier(tmp_path: Path) -> Iterator[SqliteCarrier]:
    made = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=0.3, timeout_s=0.2)
    made.open(BUDGET)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(sqlite_module, "_now", lambda: now[0])
    return now


def _ask(key: str, size: int, *, waits: bool = False, node: str = "n") -> LeaseRequest:
    return LeaseRequest(key, node, size, waits)


class TestCalls:
    """What each call of the carrier does."""

    def test_same_request_is_granted_once(self, carrier: SqliteCarrier) -> None:
        first = carrier.acquire(_ask("a", 600 * MIB))

        assert carrier.acquire(_ask("a", 600 * MIB)) == first
        assert carrier.figures().leased_bytes == 600 * MIB

    def test_reserve_is_larger_while_a_process_is_critical(self, clock: list[float], carrier: SqliteCarrier) -> None:
        carrier.publish(_node(level=Level.CRITICAL), ())

        assert carrier.figures().usable_bytes == 800 * MIB
        assert carrier.acquire(_ask("a", 801 * MIB)) is None

        clock[0] += 1
        assert carrier.figures().usable_bytes == 950 * MIB

    def test_lease_expires_unless_it_is_renewed(self, clock: list[float], carrier: SqliteCarrier) -> None:
        carrier.acquire(_ask("a", MIB))
        carrier.acquire(_ask("b", MIB))
        clock[0] += 0.2
        assert carrier.publish(_node(), (HeldLease("a", MIB),)) == ()
        clock[0] += 0.2

        assert carrier.publish(_node(), (HeldLease("a", MIB), HeldLease("b", MIB))) == ("b",)
        assert carrier.release("b") is False
        assert carrier.release("a") is True

    def test_lease_that_was_granted_elsewhere_is_taken_as_it_is(self, carrier: SqliteCarrier) -> None:
        carrier.acquire(_ask("a", 900 * MIB))

        assert carrier.publish(_node("m"), (HeldLease("b", 500 * MIB, is_local=True),)) == ()

        assert carrier.figures().leased_bytes == 1400 * MIB

    def test_leases_of_before_a_restart_of_the_machine_are_void(
        self, carrier: SqliteCarrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = carrier.acquire(_ask("a", MIB))
        monkeypatch.setattr(sqlite_module, "_boot_id", lambda: "another boot")
        other = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=9, timeout_s=0.2)
        other.open(BUDGET)

        assert other.figures().leases == 0
        assert other.acquire(_ask("a", MIB)) != before
        other.close()

    def test_pools_in_one_file_know_nothing_of_each_other(self, carrier: SqliteCarrier, tmp_path: Path) -> None:
        carrier.acquire(_ask("a", 900 * MIB))
        other = SqliteCarrier(str(tmp_path / "memory.db"), "q", ttl_s=9, timeout_s=0.2)
        other.open(10 * BUDGET)

        assert other.acquire(_ask("a", 5000 * MIB)) is not None
        assert carrier.figures().leased_bytes == 900 * MIB
        other.close()


class TestFiles:
    """A file that cannot be used is an error that says which and why."""

    def test_file_is_for_this_user_only(self, carrier: SqliteCarrier, tmp_path: Path) -> None:
        assert oct((tmp_path / "memory.db").stat().st_mode)[-3:] == "600"

    def test_database_of_something_else_is_refused(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "other.db") as other:
            other.execute("CREATE TABLE accounts (id)")
        other.close()

        with pytest.raises(ConfigError, match="a database of something else"):
            join(f"sqlite:///{tmp_path}/other.db", budget="1 GiB").open()

    def test_file_of_a_later_version_is_refused(self, carrier: SqliteCarrier, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "memory.db") as later:
            later.execute("PRAGMA user_version = 7")
        later.close()

        with pytest.raises(ConfigError, match="version 1, and not 7"):
            join(f"sqlite:///{tmp_path}/memory.db", budget="1 GiB").open()

    def test_corrupt_file_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "memory.db").write_bytes(b"no database at all" * 500)

        with pytest.raises(CarrierError, match=r"memory\.db: file is not a database"):
            join(f"sqlite:///{tmp_path}/memory.db", budget="1 GiB").open()

    def test_folder_that_does_not_exist_is_refused_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="a folder that exists"):
            join(f"sqlite:///{tmp_path}/missing/memory.db", budget="1 GiB")

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
    def test_file_system_of_a_network_is_refused(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_module, "_file_system", lambda folder: kind)

        with pytest.raises(ConfigError, match=rf"on a network \({kind}\); use redis"):
            join(f"sqlite:///{tmp_path}/memory.db", budget="1 GiB")

    def test_full_disk_is_an_error_and_passes(self, carrier: SqliteCarrier) -> None:
        connection: Any = carrier._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(CarrierError, match="full"):  # noqa: PT012  # at one of many
            for number in range(2000):
                carrier.acquire(_ask(f"{number:>200}", 1))

        assert carrier.acquire(_ask("a", MIB)) is not None  # with a connection that has no such limit

    def test_file_that_was_removed_is_made_anew(self, carrier: SqliteCarrier, tmp_path: Path) -> None:
        carrier.close()
        for path in tmp_path.glob("memory.db*"):
            path.unlink()

        assert carrier.acquire(_ask("a", 900 * MIB)) is not None
        assert carrier.acquire(_ask("b", 900 * MIB)) is None
        assert carrier.figures().budget_bytes == BUDGET


class TestAway:
    """While the carrier does not answer, what is running goes on."""

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[Cluster]:
        with join(f"sqlite:///{tmp_path}/memory.db", budget=BUDGET, ttl=2) as made:
            yield made

    @pytest.fixture
    def lock(self, cluster: Cluster, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        """A connection that holds the lock of the database."""
        holder = sqlite3.connect(tmp_path / "memory.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        yield holder
        holder.close()

    def test_small_lease_is_granted_here_and_told_afterwards(self, cluster: Cluster, lock: sqlite3.Connection) -> None:
        with cluster.lease(300 * MIB, timeout=0.1) as lease:
            assert lease.is_local
            assert cluster.statistics().is_connected is False
            lock.execute("ROLLBACK")
            end = time.monotonic() + 10
            while lease.is_local and time.monotonic() < end:
                time.sleep(0.02)

            assert (lease.is_local, lease.is_lost) == (False, False)
            assert cluster.statistics().leased_bytes == 300 * MIB

    def test_more_than_the_share_is_refused_within_the_time(self, cluster: Cluster, lock: sqlite3.Connection) -> None:
        with cluster.lease(900 * MIB, timeout=0.1):
            began = time.monotonic()
            with pytest.raises(LeaseTimeout, match="does not answer"), cluster.lease(100 * MIB, timeout=0.1):
                raise AssertionError

            assert time.monotonic() - began < 5

    def test_figures_are_unknown_within_the_time(self, cluster: Cluster, lock: sqlite3.Connection) -> None:
        began = time.monotonic()

        with pytest.raises(CarrierError):
            cluster.nodes()

        assert cluster.statistics().used_bytes is None
        assert time.monotonic() - began < 5

    def test_lease_that_cannot_be_renewed_is_lost(self, tmp_path: Path) -> None:
        lost: list[object] = []
        told = threading.Event()

        def on_lost(lease: object) -> None:
            lost.append(lease)
            told.set()
            raise KeyError("of the program")

        with join(f"sqlite:///{tmp_path}/memory.db", budget=BUDGET, ttl=0.6, on_lease_lost=on_lost) as cluster:
            with cluster.lease(MIB) as lease:
                holder = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
                holder.execute("BEGIN IMMEDIATE")
                assert told.wait(10)
                assert lease.is_lost
                with pytest.raises(Exception, match="has expired"):
                    lease.check()
                holder.close()
            assert lost == [lease]
            assert cluster.statistics().lost == 1


class TestArguments:
    """Wrong ones are refused before anything is asked."""

    @pytest.mark.parametrize("url", ["", "memory.db", "sqlite://", "sqlite:///", "postgres://x", None])
    def test_address_that_is_none_is_refused(self, url: Any) -> None:
        with pytest.raises(ConfigError, match="url="):
            join(url, budget="1 GiB")

    @pytest.mark.parametrize("budget", [0, -1, "much", "0%"])
    def test_budget_that_is_none_is_refused(self, budget: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="budget="):
            join(f"sqlite:///{tmp_path}/memory.db", budget=budget)

    def test_address_may_name_pool_and_budget(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/memory.db"

        with join(f"{url}?pool=a+b&budget=8%20GiB") as cluster, join(f"{url}?pool=c", pool="d", budget="1 GiB"):
            assert repr(cluster) == "<Cluster 'a b': 0 B held of a budget of 8.0 GiB>"
            assert look(f"{url}?pool=a+b")[0].budget_bytes == 8 * 1024 * MIB
            assert look(f"{url}?pool=a+b", pool="d")[0].budget_bytes == 1024 * MIB

    @pytest.mark.parametrize(("budget", "bytes_"), [("80%", 8000), (None, 8000), ("50%", 5000)])
    def test_share_is_one_of_the_effective_limit(
        self, budget: str | None, bytes_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMTOOLS_LIMIT", "10000")

        with join(f"sqlite:///{tmp_path}/memory.db", budget=budget) as cluster:
            assert cluster.statistics().budget_bytes == bytes_

    @pytest.mark.parametrize("budget", ["80%", None])
    def test_share_on_redis_is_refused(self, budget: str | None) -> None:
        with pytest.raises(ConfigError, match="each process"):
            join("redis://localhost/0", budget=budget)

    @pytest.mark.parametrize(
        ("path", "name"), [("/a/uvicorn/__main__.py", "uvicorn"), ("/a/b.py", "b.py"), ("", "python")]
    )
    def test_process_is_called_by_its_program(
        self, path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.argv", [path])

        with join(f"sqlite:///{tmp_path}/memory.db") as cluster:
            assert [node.name for node in cluster.nodes()] == [name]

    @pytest.mark.parametrize("size", [0, -1, "2 GiB", 951 * MIB])
    def test_size_that_is_never_granted_is_refused_at_once(self, size: Any, tmp_path: Path) -> None:
        cluster = join(f"sqlite:///{tmp_path}/memory.db", budget=BUDGET)

        with pytest.raises(ConfigError, match="size="):
            cluster.lease(size)

        assert not (tmp_path / "memory.db").exists()

    def test_lease_is_entered_once(self, tmp_path: Path) -> None:
        with join(f"sqlite:///{tmp_path}/memory.db", budget=BUDGET) as cluster:
            lease = cluster.lease(MIB)
            with lease:
                pass
            with pytest.raises(ConfigError, match="for each block"), lease:
                pass
