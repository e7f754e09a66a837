"""The embedded carrier: what goes wrong with a file, and that no call outlasts its time."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

    @pytest.mark.parametrize("version", [1, 7])
    def test_file_of_another_version_is_refused(self, version: int, carrier: SqliteCarrier, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "memory.db") as other:
            other.execute(f"PRAGMA user_version = {version}")
        other.close()

        with pytest.raises(ConfigError, match=f"version 2, and not {version}; remove it"):
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

    def test_missing_file_is_not_made_by_an_observer(self, tmp_path: Path) -> None:
        observer = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=9, timeout_s=0.2, is_observer=True)

        with pytest.raises(CarrierError, match="No such file"):
            observer.figures()

        assert not (tmp_path / "memory.db").exists()

    def test_link_to_a_file_that_is_not_there_makes_it(self, tmp_path: Path) -> None:
        (tmp_path / "memory.db").symlink_to(tmp_path / "other.db")
        made = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=9, timeout_s=0.2)

        made.open(BUDGET)

        assert (tmp_path / "other.db").exists()
        made.close()

    def test_second_pool_leaves_the_locks_of_the_first(self, carrier: SqliteCarrier, tmp_path: Path) -> None:
        # The bytes on which a connection has a shared lock as long as it is open (sqlite's SHARED_FIRST, SHARED_SIZE).
        program = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "memory.db")]
        carrier.figures()
        other = SqliteCarrier(str(tmp_path / "memory.db"), "q", ttl_s=9, timeout_s=0.2)
        with contextlib.closing(other):
            other.open(BUDGET)
            locked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        carrier.close()
        free = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert "BlockingIOError" in locked.stderr
        assert free.returncode == 0, free.stderr


class TestReplacedFiles:
    """The pool goes on in another file, and its processes tell their leases there before anything is granted."""

    @pytest.fixture
    def pair(self, tmp_path: Path, clock: list[float]) -> Iterator[tuple[SqliteCarrier, SqliteCarrier]]:
        made = [SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=4, timeout_s=0.2) for _ in range(2)]
        for number, each in enumerate(made):
            each.open(BUDGET)
            each.publish(_node(str(number), pid=os.getpid()), ())
        yield made[0], made[1]
        for each in made:
            each.close()

    @staticmethod
    def _remove(folder: Path) -> None:
        for path in folder.glob("memory.db*"):
            path.unlink()

    def test_nothing_is_granted_before_all_have_told(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path, clock: list[float]
    ) -> None:
        first, second = pair
        first.acquire(_ask("a", 600 * MIB, node="0"))
        self._remove(tmp_path)

        assert second.acquire(_ask("b", 300 * MIB, node="1")) is None  # it has told nothing itself
        assert second.publish(_node("1"), ()) == ()
        assert second.acquire(_ask("b", 300 * MIB, node="1")) is None  # the other one has not had the time
        assert first.publish(_node("0"), (HeldLease("a", 600 * MIB),)) == ()
        clock[0] += 2.1  # half of the time of a lease

        assert second.acquire(_ask("c", 400 * MIB, node="1")) is None
        assert second.acquire(_ask("b", 300 * MIB, node="1")) is not None
        assert first.figures().leased_bytes == 900 * MIB

    def test_pool_that_another_process_has_made_waits_too(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path, clock: list[float]
    ) -> None:
        self._remove(tmp_path)
        third = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=4, timeout_s=0.2)
        third.open(BUDGET)
        assert third.acquire(_ask("c", MIB)) is not None

        pair[0].publish(_node("0"), ())

        assert third.acquire(_ask("d", MIB)) is None
        clock[0] += 1.0
        pair[1].publish(_node("1"), ())  # one that comes later makes the others wait no longer
        clock[0] += 1.1
        assert third.acquire(_ask("d", MIB)) is not None
        third.close()

    def test_lease_that_was_not_told_yet_is_given_back(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path, clock: list[float]
    ) -> None:
        first, _ = pair
        for key in "abc":
            first.acquire(_ask(key, MIB, node="0"))
        self._remove(tmp_path)

        assert first.release("a") is True  # the first thing that is asked of the new file
        first.publish(_node("0"), (HeldLease("b", MIB),))
        assert first.release("c") is True  # on its way while the others were told
        assert first.release("b") is True
        clock[0] += 4.1
        assert first.release("d") is False

    def test_fences_of_the_new_file_are_higher(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path, clock: list[float]
    ) -> None:
        before = (pair[0].acquire(_ask("a", MIB)) or "").split(":")
        self._remove(tmp_path)
        pair[0].publish(_node("0"), ())
        clock[0] += 2.1

        after = (pair[0].acquire(_ask("b", MIB)) or "").split(":")

        assert before[0] != after[0]
        assert int(before[1]) < int(after[1])

    def test_new_file_with_another_budget_is_an_error(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path
    ) -> None:
        self._remove(tmp_path)
        third = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=4, timeout_s=0.2)
        third.open(2 * BUDGET)

        with pytest.raises(CarrierError, match=f"a budget of {2 * BUDGET} bytes"):
            pair[0].acquire(_ask("a", MIB))
        third.close()

    def test_database_of_something_else_in_its_place_is_an_error(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path
    ) -> None:
        self._remove(tmp_path)
        with sqlite3.connect(tmp_path / "memory.db") as other:
            other.execute("CREATE TABLE accounts (id)")
        other.close()

        with pytest.raises(CarrierError, match="a database of something else"):
            pair[0].publish(_node("0"), ())

    def test_file_that_was_removed_while_closed_is_found_out(
        self, pair: tuple[SqliteCarrier, SqliteCarrier], tmp_path: Path
    ) -> None:
        pair[0].acquire(_ask("a", MIB, node="0"))
        for each in pair:
            each.close()
        self._remove(tmp_path)  # the next one may have its number

        assert pair[0].acquire(_ask("b", MIB, node="0")) is None
        assert pair[0].publish(_node("0"), (HeldLease("a", MIB),)) == ()

    def test_file_that_is_always_another_ends_the_call(
        self, carrier: SqliteCarrier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_module, "_file_at", lambda path: (1, random.random()))

        with pytest.raises(CarrierError, match="again and again"):
            carrier.figures()

    @pytest.mark.parametrize("place", ["sqlite"], indirect=True)
    def test_processes_meet_in_the_new_file(self, place: Any, member: Callable[..., Any], tmp_path: Path) -> None:
        holder = member(budget=BUDGET, ttl_s=3.0)
        holder.do("take", "a", 600 * MIB, 1)
        self._remove(tmp_path)
        other = member(budget=BUDGET, ttl_s=3.0)
        end = time.monotonic() + 20
        while other.do("statistics")["leased_bytes"] != 600 * MIB:
            assert time.monotonic() < end
            time.sleep(0.05)

        assert "refused" in other.do("take", "b", 600 * MIB, 0)
        assert holder.do("give", "a") == {"lost": False}
        assert other.do("take", "b", 600 * MIB, 20)["fence"]
        found = holder.do("statistics")
        assert (found["lost"], found["leased_bytes"]) == (0, 600 * MIB)

    @pytest.mark.parametrize("place", ["sqlite"], indirect=True)
    def test_lease_that_has_expired_is_not_told_there(
        self, place: Any, member: Callable[..., Any], tmp_path: Path
    ) -> None:
        holder, other = member(budget=BUDGET, ttl_s=1.0), member(budget=BUDGET, ttl_s=1.0)
        other.do("take", "b", 300 * MIB, 1)
        holder.do("take", "a", 300 * MIB, 1)
        holder.process.send_signal(signal.SIGSTOP)
        time.sleep(1.1)
        self._remove(tmp_path)
        holder.process.send_signal(signal.SIGCONT)

        end = time.monotonic() + 20
        while not holder.do("told_lost") or holder.do("statistics")["leased_bytes"] != 300 * MIB:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert holder.do("statistics")["lost"] == 1
        assert other.do("statistics")["lost"] == 0


class TestEndedProcesses:
    """What they held comes back within a second, and the others do not look for them all the time."""

    def test_processes_are_looked_at_once_a_second(
        self, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[int] = []
        monkeypatch.setattr(sqlite_module, "process_start", lambda pid: looks.append(pid) or "born")
        carriers = [SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=9, timeout_s=0.2) for _ in range(2)]
        for number, each in enumerate(carriers):
            each.open(BUDGET)
            each.publish(_node(str(number), pid=number), ())
        carriers[0].acquire(_ask("a", 900 * MIB, node="0"))
        looks.clear()

        for _ in range(40):
            clock[0] += 0.05
            for number, each in enumerate(carriers):
                each.acquire(_ask(f"b {number}", 900 * MIB, node=str(number), waits=True))
                each.nodes()

        assert 2 * 1 <= len(looks) <= 2 * 3
        for each in carriers:
            each.close()

    def test_request_of_one_that_has_ended_leaves_the_queue(
        self, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive = {1, 2}
        monkeypatch.setattr(sqlite_module, "process_start", lambda pid: "born" if pid in alive else "")
        carrier = SqliteCarrier(str(tmp_path / "memory.db"), "p", ttl_s=60, timeout_s=0.2)
        carrier.open(BUDGET)
        for pid in alive:
            carrier.publish(_node(str(pid), pid=pid), ())
        carrier.acquire(_ask("held", 500 * MIB, node="1"))
        carrier.acquire(_ask("large", 900 * MIB, node="2", waits=True))
        clock[0] += 1.1
        assert carrier.acquire(_ask("small", MIB, node="1")) is None
        alive.remove(2)
        assert carrier.acquire(_ask("small", MIB, node="1")) is None  # no second has gone by

        clock[0] += 0.89

        assert carrier.acquire(_ask("small", MIB, node="1")) is None
        clock[0] += 0.12
        assert carrier.acquire(_ask("small", MIB, node="1")) is not None
        carrier.close()

    @pytest.mark.parametrize("place", ["sqlite"], indirect=True)
    def test_killed_holder_does_not_keep_it_for_its_time(self, place: Any, member: Callable[..., Any]) -> None:
        holder, other = member(budget=BUDGET, ttl_s=60.0), member(budget=BUDGET, ttl_s=60.0)
        holder.do("take", "a", 900 * MIB, 1)
        other.do("statistics")
        holder.kill()

        assert other.do("take", "b", 900 * MIB, 20)["fence"]


class TestSums:
    """The sums that are kept are those of the rows."""

    @pytest.mark.parametrize("seed", range(2))
    def test_sums_after_any_operation_are_those_of_the_rows(
        self, seed: int, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = random.Random(seed)
        alive = {1, 2, 3}
        monkeypatch.setattr(sqlite_module, "process_start", lambda pid: "born" if pid in alive else "")
        path = tmp_path / "memory.db"
        carriers = [SqliteCarrier(str(path), pool, ttl_s=ttl_s, timeout_s=5) for pool in "pq" for ttl_s in (3, 8)]
        for each in carriers:
            each.open(BUDGET)
        rows = sqlite3.connect(path)

        for _ in range(1000):
            clock[0] += draw.choice((0.01, 0.3, 1.5))
            _do_anything(draw, draw.choice(carriers), alive)
            for pool in "pq":
                assert _kept(rows, pool) == _added_up(rows, pool)

        clock[0] += 10
        assert [each.figures().used_bytes for each in carriers] == [0] * 4
        assert rows.execute("SELECT count(*) FROM account").fetchone() == (2,)  # nothing is left of those that came by
        for each in carriers:
            each.close()
        rows.close()


def _do_anything(draw: random.Random, carrier: SqliteCarrier, alive: set[int]) -> None:
    pid = draw.randrange(1, 4)
    node, key = f"n{pid}", str(draw.randrange(10))
    held = tuple(HeldLease(str(each), 70 * MIB, is_local=draw.random() < 0.3) for each in draw.sample(range(10), 3))
    told = _node(node, draw.choice((0, 50, 300)) * MIB, draw.choice(list(Level)), pid)
    match draw.choices(range(8), (6, 4, 2, 4, 1, 1, 1, 1))[0]:
        case 0:
            carrier.acquire(_ask(key, draw.choice((1, 90, 400)) * MIB, node=node, waits=draw.random() < 0.6))
        case 1:
            carrier.release(key)
        case 2:
            carrier.withdraw(key)
        case 3:
            carrier.publish(told, held)
        case 4:
            carrier.leave(node)
        case 5:
            carrier.nodes()
        case 6:
            carrier.open(BUDGET)
        case _:
            alive.symmetric_difference_update({pid})


def _kept(rows: sqlite3.Connection, pool: str) -> tuple[object, ...]:
    kept = "SELECT used, leased, leases, nodes, critical, waiting FROM account WHERE pool = ? AND node = ''"
    return tuple(rows.execute(kept, (pool,)).fetchone())


def _added_up(rows: sqlite3.Connection, pool: str) -> tuple[object, ...]:
    leases = rows.execute("SELECT node, bytes FROM lease WHERE pool = ?", (pool,)).fetchall()
    nodes = {key: (used, level) for key, used, level in rows.execute(
        "SELECT id, used, level FROM node WHERE pool = ?", (pool,))}  # fmt: skip
    leased = {key: sum(size for node, size in leases if node == key) for key in {node for node, _ in leases}}
    used = sum(max(leased.get(key, 0), nodes.get(key, (0, 0))[0]) for key in leased.keys() | nodes.keys())
    critical = sum(level == Level.CRITICAL.value for _, level in nodes.values())
    waiting = rows.execute("SELECT count(*) FROM waiter WHERE pool = ?", (pool,)).fetchone()[0]
    due = rows.execute("SELECT due FROM account WHERE pool = ? AND node = ''", (pool,)).fetchone()[0]
    for table in ("lease", "node", "waiter"):  # nothing expires before it
        first = rows.execute(f"SELECT min(until) FROM {table} WHERE pool = ?", (pool,)).fetchone()[0]
        assert first is None or first >= due
    return used, sum(leased.values()), len(leases), len(nodes), critical, waiting


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

    def test_share_is_that_of_the_processes_that_were_known(
        self, cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        with join(f"sqlite:///{tmp_path}/memory.db", budget=BUDGET, ttl=30) as second:
            lock = request.getfixturevalue("lock")

            with second.lease(400 * MIB, timeout=0) as lease:
                assert lease.is_local
                with pytest.raises(LeaseTimeout), second.lease(100 * MIB, timeout=0):  # more than half of the budget
                    raise AssertionError
                lock.execute("ROLLBACK")

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
