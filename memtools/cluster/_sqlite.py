"""The embedded carrier: a database of sqlite, for the processes of one machine.

All writes are in `BEGIN IMMEDIATE` transactions of a database in WAL mode: a process that is killed in one leaves
nothing half done. The clock is the machine's monotonic one, which all processes share; after a restart of the machine
the leases of before are void.
"""

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from memtools.cluster._carrier import CarrierError, HeldLease, LeaseRequest, Node, PoolFigures, usable_bytes
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.readings._shares import process_start

_VERSION: Final = 1  # of the tables
_QUEUE_S: Final = 2.0  # a request that is not asked again loses its place
_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "9p", "gpfs", "beegfs", "ocfs2")
)
_TABLES: Final = """
CREATE TABLE pool (name TEXT PRIMARY KEY, budget INTEGER NOT NULL, boot TEXT NOT NULL, counter INTEGER NOT NULL);
CREATE TABLE node (
    pool TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, place TEXT NOT NULL,
    pid INTEGER NOT NULL, born TEXT NOT NULL, used INTEGER NOT NULL, most INTEGER, headroom INTEGER,
    level INTEGER NOT NULL, interval REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (pool, id)
) WITHOUT ROWID;
CREATE TABLE lease (
    pool TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL, bytes INTEGER NOT NULL, fence TEXT NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (pool, id)
) WITHOUT ROWID;
CREATE TABLE waiter (
    number INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL,
    until REAL NOT NULL, UNIQUE (pool, id)
);
"""
_USED: Final = """
SELECT coalesce(sum(max(leased, used)), 0), coalesce(max(level), 0) FROM (
    SELECT sum(leased) AS leased, sum(used) AS used, max(level) AS level FROM (
        SELECT node, bytes AS leased, 0 AS used, 0 AS level FROM lease WHERE pool = :pool
        UNION ALL SELECT id, 0, used, level FROM node WHERE pool = :pool AND at > :fresh
    ) GROUP BY node
)
"""

# Connections of a parent process: closing one in a child could release what the parent holds.
_abandoned: list[sqlite3.Connection] = []


class SqliteCarrier:
    """A pool in a file.

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
        self._flags = os.O_RDWR | os.O_CLOEXEC | (0 if is_observer else os.O_CREAT)
        self._pool = pool
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None
        self._budget_bytes = 0
        self._boot = _boot_id()

    def open(self, budget_bytes: int) -> None:
        """See `Carrier`."""
        self._budget_bytes = budget_bytes
        with self._transaction() as run:
            row = run("SELECT budget, boot FROM pool WHERE name = ?", self._pool).fetchone()
            if row[1] != self._boot:
                for table in ("node", "lease", "waiter"):
                    run(f"DELETE FROM {table} WHERE pool = ?", self._pool)
                run("UPDATE pool SET boot = ?, counter = counter + 1 WHERE name = ?", self._boot, self._pool)
            self._expire(run)
            self._remove_dead(run)
            if row[0] == budget_bytes:
                return
            if run(
                "SELECT 1 FROM node WHERE pool = ? UNION SELECT 1 FROM lease WHERE pool = ?", *[self._pool] * 2
            ).fetchone():
                raise ConfigError("budget", budget_bytes, f"{row[0]} bytes, as the processes that are in the pool now")
            run("UPDATE pool SET budget = ? WHERE name = ?", budget_bytes, self._pool)

    def publish(self, node: Node, leases: tuple[HeldLease, ...]) -> tuple[str, ...]:
        """See `Carrier`."""
        now = _now()
        with self._transaction() as run:
            run(
                "INSERT OR REPLACE INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._pool, node.id, node.name, node.host, _place(), node.pid, process_start(node.pid), node.used_bytes,
                node.limit_bytes, node.headroom_bytes, node.level.value, node.interval_s, now,
            )  # fmt: skip
            self._expire(run)
            lost: list[str] = []
            for lease in leases:
                renewed = run(
                    "UPDATE lease SET until = ? WHERE pool = ? AND id = ?", now + self._ttl_s, self._pool, lease.id
                ).rowcount
                if not renewed and lease.is_local:
                    self._insert(run, lease.id, node.id, lease.size_bytes)
                elif not renewed:
                    lost.append(lease.id)
            return tuple(lost)

    def acquire(self, request: LeaseRequest) -> str | None:
        """See `Carrier`."""
        with self._transaction() as run:
            self._expire(run)
            row = run("SELECT fence FROM lease WHERE pool = ? AND id = ?", self._pool, request.id).fetchone()
            if row is not None:
                return str(row[0])
            first = run("SELECT id FROM waiter WHERE pool = ? ORDER BY number LIMIT 1", self._pool).fetchone()
            if (first is None or first[0] == request.id) and self._fits(run, request.size_bytes):
                if first is not None:
                    run("DELETE FROM waiter WHERE pool = ? AND id = ?", self._pool, request.id)
                return self._insert(run, request.id, request.node, request.size_bytes)
            if request.waits:
                run(
                    "INSERT INTO waiter (pool, id, node, until) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (pool, id) DO UPDATE SET until = excluded.until",
                    self._pool, request.id, request.node, _now() + _QUEUE_S,
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
            found = run("DELETE FROM lease WHERE pool = ? AND id = ? RETURNING until", self._pool, lease_id).fetchone()
            return found is not None and bool(found[0] > _now())

    def nodes(self) -> tuple[Node, ...]:
        """See `Carrier`."""
        now = _now()
        with self._transaction() as run:
            self._expire(run)
            self._remove_dead(run)
            leased = dict(run("SELECT node, sum(bytes) FROM lease WHERE pool = ? GROUP BY node", self._pool).fetchall())
            rows = run(
                "SELECT id, name, host, pid, used, most, headroom, level, interval, at FROM node WHERE pool = ? "
                "ORDER BY name, id",
                self._pool,
            ).fetchall()
        return tuple(
            Node(
                id=key, name=name, host=host, pid=pid, used_bytes=used, limit_bytes=limit, headroom_bytes=headroom,
                level=Level(level), leased_bytes=leased.get(key, 0), age_s=now - at, interval_s=interval,
            )
            for key, name, host, pid, used, limit, headroom, level, interval, at in rows
        )  # fmt: skip

    def figures(self) -> PoolFigures:
        """See `Carrier`."""
        with self._transaction() as run:
            self._expire(run)
            row = run("SELECT budget FROM pool WHERE name = ?", self._pool).fetchone()
            budget = self._budget_bytes = int(row[0]) if row is not None else 0
            used, usable = self._used_and_usable(run)
            leases, leased = run(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM lease WHERE pool = ?", self._pool
            ).fetchone()
            waiting = run("SELECT count(*) FROM waiter WHERE pool = ?", self._pool).fetchone()[0]
        return PoolFigures(budget, usable, used, leased, leases, waiting)

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

    def _insert(self, run: "_Run", lease_id: str, node: str, size_bytes: int) -> str:
        number = run("UPDATE pool SET counter = counter + 1 WHERE name = ? RETURNING counter", self._pool).fetchone()[0]
        fence = f"{self._boot[:8]}:{number}"
        until = _now() + self._ttl_s
        run("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)", self._pool, lease_id, node, size_bytes, fence, until)
        return fence

    def _fits(self, run: "_Run", size_bytes: int) -> bool:
        """Return whether there is room, if need be after those have been removed that have died."""
        used, usable = self._used_and_usable(run)
        if used + size_bytes > usable and self._remove_dead(run):
            used, usable = self._used_and_usable(run)
        return used + size_bytes <= usable

    def _used_and_usable(self, run: "_Run") -> tuple[int, int]:
        used, level = run.named(_USED, pool=self._pool, fresh=_now() - self._ttl_s).fetchone()
        return used, usable_bytes(self._budget_bytes, is_critical=level == Level.CRITICAL.value)

    def _expire(self, run: "_Run") -> None:
        now = _now()
        run("DELETE FROM lease WHERE pool = ? AND until <= ?", self._pool, now)
        run("DELETE FROM waiter WHERE pool = ? AND until <= ?", self._pool, now)

    def _remove_dead(self, run: "_Run") -> bool:
        """Remove processes that have ended, or told nothing for the time of a lease; return whether there were some."""
        old = _now() - self._ttl_s
        rows = run("SELECT id, pid, born, place, at FROM node WHERE pool = ?", self._pool).fetchall()
        here = _place()
        dead = [key for key, pid, born, place, at in rows if at < old or (place == here and process_start(pid) != born)]
        for key in dead:
            self._remove(run, key)
        return bool(dead)

    def _remove(self, run: "_Run", node_id: str) -> None:
        for table, column in (("lease", "node"), ("waiter", "node"), ("node", "id")):
            run(f"DELETE FROM {table} WHERE pool = ? AND {column} = ?", self._pool, node_id)

    @contextlib.contextmanager
    def _transaction(self) -> Generator["_Run"]:
        connection = self._connection
        try:
            if connection is None:
                connection = self._connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
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

    def _forget(self, error: Exception) -> None:
        """Connect anew for the next call, unless only the lock was not free: the file may have been replaced."""
        if "locked" not in str(error):
            with contextlib.suppress(sqlite3.Error):
                self.close()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, self._flags, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _make_tables(connection, self._path)
            if self._budget_bytes:  # of a member, whether it joins or the file was replaced since
                values = (self._pool, self._budget_bytes, self._boot)
                connection.execute("INSERT OR IGNORE INTO pool VALUES (?, ?, ?, 0)", values)
        except BaseException:
            connection.close()
            raise
        return connection


class _Run:
    """Runs statements of one transaction."""

    __slots__ = ("_execute",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def __call__(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._execute(statement, values)

    def named(self, statement: str, **values: Any) -> sqlite3.Cursor:  # Any: what sqlite takes
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
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    elif version != _VERSION:
        raise ConfigError("url", path, f"a file of this version of memtools: version {_VERSION}, and not {version}")


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
