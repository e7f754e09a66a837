"""The embedded carrier: a database of sqlite, for the processes of one machine.

All writes are in `BEGIN IMMEDIATE` transactions of a database in WAL mode: a process that is killed in one leaves
nothing half done. The clock is the machine's monotonic one, which all processes share; after a restart of the machine
the leases of before are void.

Triggers keep the sums of a pool: adding up a thousand leases takes longer than all the rest of a request. No statement
of a lease has a RETURNING clause, since sqlite makes a table for its rows, which takes as long as a transaction.
"""

import contextlib
import errno
import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple

from memtools.cluster._carrier import (
    CarrierError,
    HeldLease,
    LeaseRequest,
    Node,
    PoolFigures,
    settle_s,
    usable_bytes,
)
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.readings._shares import process_start

_log = logging.getLogger("memtools.cluster")

_VERSION: Final = 2  # of the tables
_PAGE_BYTES: Final = 2048  # a transaction writes whole pages
_QUEUE_S: Final = 2.0  # a request that is not asked again loses its place
_LOOK_S: Final = 1.0  # between two looks of the pool at which of its processes have ended
_ATTEMPTS: Final = 5  # at a file that is replaced meanwhile
_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "9p", "gpfs", "beegfs", "ocfs2")
)
# Of a pool, `ready` is when it grants leases, or 0, and `looked` when its processes were last looked at. In `account`
# the row without a node is that of the pool, with the sums over the others, the number of the last fence, and a time
# before which nothing expires: on one page with the others, since a lease changes both. What counts for a node is the
# larger of what is leased to it and what it has measured.
_TABLES: Final = """
CREATE TABLE pool (
    name TEXT PRIMARY KEY, budget INTEGER NOT NULL, boot TEXT NOT NULL, epoch TEXT NOT NULL, ready REAL NOT NULL,
    looked REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE account (
    pool TEXT NOT NULL, node TEXT NOT NULL, leased INTEGER NOT NULL DEFAULT 0, measured INTEGER NOT NULL DEFAULT 0,
    used INTEGER NOT NULL DEFAULT 0, leases INTEGER NOT NULL DEFAULT 0, nodes INTEGER NOT NULL DEFAULT 0,
    critical INTEGER NOT NULL DEFAULT 0, waiting INTEGER NOT NULL DEFAULT 0, counter INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, node)
) WITHOUT ROWID;
CREATE TABLE node (
    pool TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, place TEXT NOT NULL,
    pid INTEGER NOT NULL, born TEXT NOT NULL, used INTEGER NOT NULL, most INTEGER, headroom INTEGER,
    level INTEGER NOT NULL, interval REAL NOT NULL, at REAL NOT NULL, until REAL NOT NULL, PRIMARY KEY (pool, id)
) WITHOUT ROWID;
CREATE TABLE lease (
    pool TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL, bytes INTEGER NOT NULL, fence TEXT NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (pool, id)
) WITHOUT ROWID;
CREATE TABLE waiter (
    number INTEGER PRIMARY KEY, pool TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL, until REAL NOT NULL,
    UNIQUE (pool, id)
);
CREATE TRIGGER lease_added AFTER INSERT ON lease BEGIN
    UPDATE account SET leased = leased + new.bytes, leases = leases + 1, counter = counter + 1,
        due = min(due, new.until), used = used + coalesce((
            SELECT max(leased + new.bytes, measured) - max(leased, measured) FROM account
            WHERE pool = new.pool AND node = new.node
        ), new.bytes)
    WHERE pool = new.pool AND node = '';
    INSERT INTO account (pool, node, leased) VALUES (new.pool, new.node, new.bytes)
        ON CONFLICT (pool, node) DO UPDATE SET leased = leased + new.bytes;
END;
CREATE TRIGGER lease_removed AFTER DELETE ON lease BEGIN
    UPDATE account SET leased = leased - old.bytes, leases = leases - 1, used = used + (
            SELECT max(leased - old.bytes, measured) - max(leased, measured) FROM account
            WHERE pool = old.pool AND node = old.node
        )
    WHERE pool = old.pool AND node = '';
    UPDATE account SET leased = leased - old.bytes WHERE pool = old.pool AND node = old.node;
END;
CREATE TRIGGER node_added AFTER INSERT ON node BEGIN
    UPDATE account SET nodes = nodes + 1, critical = critical + (new.level = {critical}), due = min(due, new.until),
        used = used + coalesce((
            SELECT max(leased, new.used) - max(leased, measured) FROM account
            WHERE pool = new.pool AND node = new.id
        ), new.used)
    WHERE pool = new.pool AND node = '';
    INSERT INTO account (pool, node, measured) VALUES (new.pool, new.id, new.used)
        ON CONFLICT (pool, node) DO UPDATE SET measured = new.used;
END;
CREATE TRIGGER node_removed AFTER DELETE ON node BEGIN
    UPDATE account SET nodes = nodes - 1, critical = critical - (old.level = {critical}), used = used + (
            SELECT leased - max(leased, measured) FROM account WHERE pool = old.pool AND node = old.id
        )
    WHERE pool = old.pool AND node = '';
    UPDATE account SET measured = 0 WHERE pool = old.pool AND node = old.id;
END;
CREATE TRIGGER waiter_added AFTER INSERT ON waiter BEGIN
    UPDATE account SET waiting = waiting + 1, due = min(due, new.until) WHERE pool = new.pool AND node = '';
END;
CREATE TRIGGER waiter_removed AFTER DELETE ON waiter BEGIN
    UPDATE account SET waiting = waiting - 1 WHERE pool = old.pool AND node = '';
END;
""".replace("{critical}", str(Level.CRITICAL.value))
_STATE: Final = """
SELECT budget, epoch, looked, ready, used, leased, leases, nodes, critical, waiting, counter, due,
    (SELECT fence FROM lease WHERE pool = name AND id = ?)
FROM pool JOIN account ON account.pool = name AND node = '' WHERE name = ?
"""
_DUE: Final = """
UPDATE account SET due = (
    SELECT coalesce(min(until), 9e999) FROM (
        SELECT min(until) AS until FROM lease WHERE lease.pool = account.pool
        UNION ALL SELECT min(until) FROM waiter WHERE waiter.pool = account.pool
        UNION ALL SELECT min(until) FROM node WHERE node.pool = account.pool
    )
) WHERE pool = ? AND node = ''
"""

# Connections of a parent process: closing one in a child could release what the parent holds.
_abandoned: list[sqlite3.Connection] = []


class SqliteCarrier:
    """A pool in a file.

    Where the file is removed or replaced, each process that has it open finds out at its next call, goes to the file
    that is there now, and makes one if need be. That file grants a process nothing before it has told its leases
    there, and nothing to any process before all have had the time for it.

    Args:
        path: of the file; its folder must exist, and be on this machine.
        pool: the name of the pool.
        ttl_s: seconds for which a lease is valid without being renewed.
        timeout_s: seconds after which a call gives up.
        is_observer: whether the file is only looked at: it is not made where there is none.

    Raises:
        ConfigError: when the folder does not exist, or is on a network.
    """

    def __init__(self, path: str, pool: str, *, ttl_s: float, timeout_s: float, is_observer: bool = False) -> None:
        self._path = _checked_path(path)
        self._pool = pool
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._is_observer = is_observer
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # that the connection is to
        self._budget_bytes = 0
        self._epoch = ""  # of the pool that this process has joined
        self._has_to_tell = False  # its leases, since it came to a pool that does not know them
        self._returned_at = float("-inf")
        self._boot = _boot_id()

    def open(self, budget_bytes: int) -> None:
        """See `Carrier`."""
        self._budget_bytes, self._epoch = budget_bytes, ""
        self._has_to_tell, self._returned_at = False, float("-inf")
        with self._transaction() as run:
            now = _now()
            self._make_pool(run, now)
            self._expire(run, now)
            self._remove_dead(run, now)
            state = self._read(run)
            if state.budget != budget_bytes:
                if state.nodes or state.leases:
                    known = f"{state.budget} bytes, as the processes that are in the pool now"
                    raise ConfigError("budget", budget_bytes, known)
                run("UPDATE pool SET budget = ? WHERE name = ?", budget_bytes, self._pool)
        self._epoch = state.epoch

    def publish(self, node: Node, leases: tuple[HeldLease, ...]) -> tuple[str, ...]:
        """See `Carrier`."""
        lost: list[str] = []
        with self._transaction() as run:
            now = _now()
            until = now + self._ttl_s
            self._joined(run, now)
            run("DELETE FROM node WHERE pool = ? AND id = ?", self._pool, node.id)
            run(
                "INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._pool, node.id, node.name, node.host, _place(), node.pid, process_start(node.pid), node.used_bytes,
                node.limit_bytes, node.headroom_bytes, node.level.value, node.interval_s, now, until,
            )  # fmt: skip
            for lease in leases:
                if run("UPDATE lease SET until = ? WHERE pool = ? AND id = ?", until, self._pool, lease.id).rowcount:
                    continue
                if lease.is_local or self._has_to_tell:
                    self._insert(run, self._read(run), lease.id, node.id, lease.size_bytes, until)
                else:
                    lost.append(lease.id)
        self._has_to_tell = False
        return tuple(lost)

    def acquire(self, request: LeaseRequest) -> str | None:
        """See `Carrier`."""
        with self._transaction() as run:
            now = _now()
            state = self._joined(run, now, request.id)
            if state.fence is not None:
                return state.fence
            is_granted = self._has_turn(run, state, request, now)
            if not is_granted and self._look(run, state, now):
                state = self._read(run)
                is_granted = self._has_turn(run, state, request, now)
            if is_granted:
                if state.waiting:
                    run("DELETE FROM waiter WHERE pool = ? AND id = ?", self._pool, request.id)
                return self._insert(run, state, request.id, request.node, request.size_bytes, now + self._ttl_s)
            if request.waits:
                run(
                    "INSERT INTO waiter (pool, id, node, until) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (pool, id) DO UPDATE SET until = excluded.until",
                    self._pool, request.id, request.node, now + _QUEUE_S,
                )  # fmt: skip
            return None

    def withdraw(self, lease_id: str) -> None:
        """See `Carrier`."""
        with self._transaction() as run:
            run("DELETE FROM waiter WHERE pool = ? AND id = ?", self._pool, lease_id)
            run("DELETE FROM lease WHERE pool = ? AND id = ?", self._pool, lease_id)

    def release(self, lease_id: str) -> bool:
        """See `Carrier`."""
        with self._transaction() as run:
            now = _now()
            delete = "DELETE FROM lease WHERE pool = ? AND id = ? AND until > ?"
            if run(delete, self._pool, lease_id, now).rowcount:
                return True
            if self._epoch:
                self._joined(run, now)
        # A lease that was given back before it was told to another file is not there; none has expired there yet.
        return now < self._returned_at + self._ttl_s

    def nodes(self) -> tuple[Node, ...]:
        """See `Carrier`."""
        with self._transaction() as run:
            now = _now()
            state = self._current(run, now)
            if state is not None:
                self._look(run, state, now)
            rows = run(
                "SELECT id, name, host, pid, node.used, most, headroom, level, interval, at, leased FROM node "
                "JOIN account ON account.pool = node.pool AND node = id WHERE node.pool = ? ORDER BY name, id",
                self._pool,
            ).fetchall()
        return tuple(
            Node(
                id=key, name=name, host=host, pid=pid, used_bytes=used, limit_bytes=limit, headroom_bytes=headroom,
                level=Level(level), leased_bytes=leased, age_s=now - at, interval_s=interval,
            )
            for key, name, host, pid, used, limit, headroom, level, interval, at, leased in rows
        )  # fmt: skip

    def figures(self) -> PoolFigures:
        """See `Carrier`."""
        with self._transaction() as run:
            state = self._current(run, _now())
        if state is None:
            return PoolFigures(0, 0, 0, 0, 0, 0, 0)
        return PoolFigures(
            state.budget, state.usable, state.used, state.leased, state.leases, state.waiting, state.nodes
        )

    def leave(self, node_id: str) -> None:
        """See `Carrier`."""
        with self._transaction() as run:
            self._remove(run, node_id)

    def abandon(self) -> None:
        """See `Carrier`."""
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None

    def close(self) -> None:
        """See `Carrier`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _make_pool(self, run: "_Run", now: float) -> None:
        """Make the pool where there is none, and void what it holds where the machine has been started since."""
        row = run("SELECT boot FROM pool WHERE name = ?", self._pool).fetchone()
        if row is None:
            # Wall time in µs: the numbers rise also where a file takes the place of another.
            values = (self._pool, self._budget_bytes, self._boot, _new_epoch(), 0.0, now)
            run("INSERT INTO pool VALUES (?, ?, ?, ?, ?, ?)", *values)
            run("INSERT INTO account (pool, node, counter) VALUES (?, '', ?)", self._pool, _wall_us())
        elif row[0] != self._boot:
            for table in ("node", "lease", "waiter"):
                run(f"DELETE FROM {table} WHERE pool = ?", self._pool)
            run(
                "UPDATE pool SET boot = ?, epoch = ?, ready = 0, looked = ? WHERE name = ?",
                self._boot, _new_epoch(), now, self._pool,
            )  # fmt: skip
            run("UPDATE account SET counter = max(counter, ?) WHERE pool = ? AND node = ''", _wall_us(), self._pool)

    def _joined(self, run: "_Run", now: float, lease_id: str = "") -> "_State":
        """Return what is kept of the pool that this process has joined, or of the one in its place, and join that."""
        state = self._current(run, now, lease_id)
        if state is None or state.epoch != self._epoch:
            self._make_pool(run, now)
            if self._epoch:
                _log.warning("%s was removed or replaced: this process tells its leases anew", self._path)
                self._has_to_tell, self._returned_at = True, now
                ready = now + settle_s(self._ttl_s)
                run("UPDATE pool SET ready = ? WHERE name = ? AND ready = 0", ready, self._pool)
            state = self._read(run, lease_id)
            self._epoch = state.epoch
        if state.budget != self._budget_bytes:
            raise CarrierError(f"{self._path}: the pool was made anew, with a budget of {state.budget} bytes")
        return state

    def _current(self, run: "_Run", now: float, lease_id: str = "") -> "_State | None":
        """Return what is kept of the pool, where there is one, after the removal of what has expired."""
        row = run(_STATE, lease_id, self._pool).fetchone()
        if row is None:
            return None
        state = _State(*row)
        if now < state.due:
            return state
        self._expire(run, now)
        return self._read(run, lease_id)

    def _read(self, run: "_Run", lease_id: str = "") -> "_State":
        return _State(*run(_STATE, lease_id, self._pool).fetchone())

    def _has_turn(self, run: "_Run", state: "_State", request: LeaseRequest, now: float) -> bool:
        """Return whether a request is the first one, and there is room for it."""
        if self._has_to_tell or now < state.ready or state.used + request.size_bytes > state.usable:
            return False
        if not state.waiting:
            return True
        first = run("SELECT id FROM waiter WHERE pool = ? ORDER BY number LIMIT 1", self._pool).fetchone()
        return bool(first[0] == request.id)

    def _insert(self, run: "_Run", state: "_State", lease_id: str, node: str, size_bytes: int, until: float) -> str:
        fence = f"{state.epoch}:{state.counter + 1}"
        run("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)", self._pool, lease_id, node, size_bytes, fence, until)
        return fence

    def _expire(self, run: "_Run", now: float) -> None:
        for table in ("lease", "waiter", "node"):
            run(f"DELETE FROM {table} WHERE pool = ? AND until <= ?", self._pool, now)
        run(
            "DELETE FROM account WHERE pool = ? AND node <> '' AND leased = 0 "
            "AND NOT EXISTS (SELECT 1 FROM node WHERE node.pool = account.pool AND id = account.node)",
            self._pool,
        )
        run(_DUE, self._pool)

    def _look(self, run: "_Run", state: "_State", now: float) -> bool:
        """Remove processes that have ended, but once a second for the pool; return whether there were some."""
        return now >= state.looked + _LOOK_S and self._remove_dead(run, now)

    def _remove_dead(self, run: "_Run", now: float) -> bool:
        run("UPDATE pool SET looked = ? WHERE name = ?", now, self._pool)
        here = _place()
        rows = run("SELECT id, pid, born FROM node WHERE pool = ? AND place = ?", self._pool, here).fetchall()
        dead = [key for key, pid, born in rows if process_start(pid) != born]
        for key in dead:
            self._remove(run, key)
        return bool(dead)

    def _remove(self, run: "_Run", node_id: str) -> None:
        for table, column in (("lease", "node"), ("waiter", "node"), ("node", "id"), ("account", "node")):
            run(f"DELETE FROM {table} WHERE pool = ? AND {column} = ?", self._pool, node_id)

    @contextlib.contextmanager
    def _transaction(self) -> Generator["_Run"]:
        try:
            connection = self._begin()
        except ConfigError as error:
            if not self._epoch:
                raise
            raise CarrierError(str(error)) from error  # another file has taken the place of the one that was opened
        except (sqlite3.Error, OSError) as error:
            self._forget(error)
            raise CarrierError(f"{self._path}: {error}") from error
        try:
            yield _Run(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            self._forget(error)
            raise CarrierError(f"{self._path}: {error}") from error
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _begin(self) -> sqlite3.Connection:
        """Begin a transaction of the file that has the path now."""
        for _ in range(_ATTEMPTS):
            connection = self._connection
            if connection is None:
                connection = self._connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            if _file_at(self._path) == self._file:
                return connection
            connection.execute("ROLLBACK")
            self.close()
        raise OSError("the file is replaced again and again")

    def _forget(self, error: Exception) -> None:
        """Connect anew for the next call, unless only the lock was not free: the file may have been replaced."""
        if "locked" not in str(error):
            with contextlib.suppress(sqlite3.Error):
                self.close()

    def _connect(self) -> sqlite3.Connection:
        if not self._is_observer:
            _make_file(self._path)
        self._file = _file_at(self._path)
        if self._file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path)
        connection = sqlite3.connect(
            f"{Path(self._path).as_uri()}?mode=rw", uri=True, timeout=self._timeout_s, isolation_level=None,
            check_same_thread=False, cached_statements=64,
        )  # fmt: skip
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a file that is new
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _make_tables(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection


class _State(NamedTuple):
    """What is kept of a pool, and the fence of the lease that was asked for, where it has been granted."""

    budget: int
    epoch: str
    looked: float
    ready: float
    used: int
    leased: int
    leases: int
    nodes: int
    critical: int
    waiting: int
    counter: int
    due: float
    fence: str | None

    @property
    def usable(self) -> int:
        return usable_bytes(self.budget, is_critical=self.critical > 0)


class _Run:
    """Runs statements of one transaction."""

    __slots__ = ("_execute",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def __call__(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._execute(statement, values)


def _make_tables(connection: sqlite3.Connection, path: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.execute("ROLLBACK")
            raise ConfigError("url", path, "the path of a file of its own: this is a database of something else")
        if version == 0:
            for statement in re.split(r";\n(?=CREATE )", _TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    if version not in (0, _VERSION):
        raise ConfigError(
            "url", path,
            f"a file of this version of memtools: version {_VERSION}, and not {version}; "
            "remove it once no process uses it",
        )  # fmt: skip


def _make_file(path: str) -> None:
    """Make a file for this user only, where there is none."""
    # One that exists is not opened: closing it would end the locks that this process has on it by sqlite (fcntl(2)).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _checked_path(path: str) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError("url", path, f"a path in a folder that exists: {folder} does not")
    kind = _file_system(folder)
    if kind in _NETWORK or kind.startswith("fuse.ssh"):
        raise ConfigError("url", path, f"a path on this machine: {folder} is on a network ({kind}); use redis://")
    return str(Path(path).absolute())


def _file_system(folder: Path) -> str:
    """Return the kind of the file system of a folder; empty where the system does not tell."""
    try:
        device = folder.stat().st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((line[line.index("-") + 1] for line in lines if line[2] == wanted and "-" in line), "")


def _now() -> float:
    return time.monotonic()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(round((time.time() - time.monotonic()) / 600))  # within ten minutes the same


def _place() -> str:
    """Return the machine, and the set of process ids that this process can see."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _wall_us() -> int:
    return time.time_ns() // 1000


def _new_epoch() -> str:
    return os.urandom(4).hex()
