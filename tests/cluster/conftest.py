"""A real Redis server, carriers on it and on sqlite, and processes that share a pool there."""

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from memtools.cluster._carrier import Carrier
from memtools.cluster._sqlite import SqliteCarrier

PROGRAM = Path(__file__).parent / "programs" / "member.py"
ANSWER_S = 120.0  # by which a member has to answer, however busy the machine is
ON_REDIS = pytest.param("redis", marks=pytest.mark.once)  # the answers of a server do not depend on this Python
MISSING = "there is no redis-server on the PATH: apt-get install redis-server, or brew install redis"


class RedisServer:
    """A server on a port of the loopback device, without persistence.

    Args:
        folder: where it runs, and writes its log.
        options: more of its options, as on its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(5):  # another program may take the port in between, or that of the cluster bus
            self.port = _free_port()
            if self._start():
                return
        self._fail()

    @property
    def url(self) -> str:
        """The address, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return self._folder

    def wait_for_cluster(self) -> None:
        """Wait until it knows of a server for each slot."""
        end = time.monotonic() + 30
        while b"cluster_state:ok" not in self.command("CLUSTER", "INFO"):
            assert time.monotonic() < end, "the cluster did not form"
            time.sleep(0.05)

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        if not self._start():
            self._fail()

    def _fail(self) -> None:
        pytest.fail(f"redis-server did not start: {(self._folder / 'redis.log').read_text()[-2000:]}")

    def _start(self) -> bool:
        with open(self._folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                 "--dir", str(self._folder), *self._options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                return False
            time.sleep(0.01)
        return True

    def freeze(self) -> None:
        """Let it stand still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it at once, as a machine that fails."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def command(self, *words: object) -> Any:
        """Send a command, and return its answer."""
        from redis import Redis

        with Redis(port=self.port, socket_timeout=10) as client:
            return client.execute_command(*words)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
            client.sendall(b"PING\r\n")
            return client.recv(1) in (b"+", b"-")  # the latter where it wants a password
        return False

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _free_port() -> int:
    # Below those that the system gives to clients: one of these could take it while the server is down.
    while True:
        port = 10_000 + int.from_bytes(os.urandom(2)) % 20_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _needs_redis() -> None:
    if shutil.which("redis-server") is None:
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(f"{MISSING} (REQUIRE_SERVERS is set)", pytrace=False)
        pytest.skip(MISSING)


StartRedis = Callable[..., RedisServer]


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRedis]:
    """Start servers of one test, each with more options if need be; all end with it."""
    _needs_redis()
    started: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        started.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        return started[-1]

    yield start

    for server in started:
        server.stop()


@pytest.fixture
def redis_server(start_redis: StartRedis) -> RedisServer:
    """A server of this test."""
    return start_redis()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of all tests that do it no harm; each has a pool of its own."""
    _needs_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))

    yield server

    server.stop()


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Two servers of one Redis Cluster, each with half of the slots; the first one has a Unix socket, too."""
    _needs_redis()
    folder = tmp_path_factory.mktemp("redis")
    first = RedisServer(folder, "--cluster-enabled", "yes", "--unixsocket", str(folder / "redis.sock"))
    second = RedisServer(tmp_path_factory.mktemp("redis"), "--cluster-enabled", "yes")
    first.command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    second.command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    first.command("CLUSTER", "MEET", "127.0.0.1", second.port)
    for server in (first, second):
        server.wait_for_cluster()

    yield first, second

    for server in (first, second):
        server.stop()


MakeCarrier = Callable[..., Carrier]


def _make_sqlite(folder: Path, pool: str, ttl_s: float, timeout_s: float) -> Carrier:
    return SqliteCarrier(str(folder / "memory.db"), pool, ttl_s=ttl_s, timeout_s=timeout_s)


def _make_redis(server: RedisServer, pool: str, ttl_s: float, timeout_s: float) -> Carrier:
    from memtools.cluster.redis import RedisCarrier

    return RedisCarrier(server.url, pool, ttl_s=ttl_s, timeout_s=timeout_s)


@pytest.fixture(params=["sqlite", ON_REDIS])
def make_carrier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCarrier]:
    """Make carriers of one kind, on the same server or file; they are closed at the end."""
    shared = request.getfixturevalue("shared_redis") if request.param == "redis" else None
    made: list[Carrier] = []
    prefix = os.urandom(4).hex()

    def make(*, pool: str = "p", ttl_s: float = 15.0, timeout_s: float = 5.0) -> Carrier:
        if shared is None:
            made.append(_make_sqlite(tmp_path, pool, ttl_s, timeout_s))
        else:
            made.append(_make_redis(shared, prefix + pool, ttl_s, timeout_s))
        return made[-1]

    yield make

    for carrier in made:
        carrier.close()


@pytest.fixture
def make_pair(
    shared_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[Carrier, Carrier]]]:
    """Make a carrier of each kind, on a pool of its own; they are closed at the end. Requests keep their place."""
    from memtools.cluster import _sqlite, redis

    script = redis._SCRIPT.replace("QUEUE_US, KEPT_US, CHUNK = 2000000", "QUEUE_US, KEPT_US, CHUNK = 3600000000")
    assert script != redis._SCRIPT
    monkeypatch.setattr(redis, "_SCRIPT", script)
    monkeypatch.setattr(redis, "_SHA", hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest())
    monkeypatch.setattr(_sqlite, "_QUEUE_S", 3600.0)
    made: list[Carrier] = []

    def make() -> tuple[Carrier, Carrier]:
        pair = _make_sqlite(tmp_path, "p", 3600.0, 5.0), _make_redis(shared_redis, os.urandom(4).hex(), 3600.0, 5.0)
        made.extend(pair)
        return pair

    yield make

    for carrier in made:
        carrier.close()


class Member:
    """A process that has joined, or is about to at its first command.

    Args:
        place: the pool that it joins.
        budget: of the pool, in bytes.
        ttl_s: for which its leases are valid.
        name: what it is called.
    """

    def __init__(self, place: "Place", budget: int, ttl_s: float, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), place.url, place.pool, str(budget), str(ttl_s), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def begin(self, *command: object) -> None:
        """Send a command, without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to the command that was sent first."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], ANSWER_S)[0], "the member does not answer"
        return json.loads(self.process.stdout.readline())

    def do(self, *command: object) -> Any:
        """Send a command, and return its answer."""
        self.begin(*command)
        return self.answer()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Audit(Protocol):
    """Looks at the leases of a pool after each operation, without the carrier."""

    def end(self) -> tuple[int, int]:
        """Return how many leases came and went, and the most bytes that were leased at once."""
        ...


class SqliteAudit:
    """Adds up the rows of the leases, in the transactions that change them.

    Args:
        path: of the file of the pool.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=30)
        self._connection.executescript(
            "CREATE TABLE audit (changes INTEGER, most INTEGER); INSERT INTO audit VALUES (0, 0);"
            "CREATE TRIGGER audit_added AFTER INSERT ON lease BEGIN UPDATE audit SET changes = changes + 1, "
            "most = max(most, (SELECT sum(bytes) FROM lease)); END;"
            "CREATE TRIGGER audit_removed AFTER DELETE ON lease BEGIN UPDATE audit SET changes = changes + 1; END;"
        )

    def end(self) -> tuple[int, int]:
        """See `Audit`."""
        found = self._connection.execute("SELECT changes, most FROM audit").fetchone()
        self._connection.close()
        return int(found[0]), int(found[1])


class RedisAudit:
    """Adds up the leases that the server says it writes and removes (MONITOR), command by command.

    Args:
        server: that has the pool.
        pool: its name.
    """

    _ADDED = re.compile(r'"lease:(\w+)" "(\d+) ')
    _REMOVED = re.compile(r'"lease:(\w+)"')

    def __init__(self, server: RedisServer, pool: str) -> None:
        self._server = server
        self._key = f'"memtools:{{{pool}}}:pool"'
        self._mark = os.urandom(8).hex()
        self._leases: dict[str, int] = {}
        self._changes = self._most = 0
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_S)
        self._socket.sendall(b"MONITOR\r\n")
        self._lines = self._socket.makefile("r", encoding="latin-1")
        assert self._lines.readline() == "+OK\n"
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def end(self) -> tuple[int, int]:
        """See `Audit`."""
        self._server.command("ECHO", self._mark)
        self._thread.join(ANSWER_S)
        self._lines.close()
        self._socket.close()
        return self._changes, self._most

    def _follow(self) -> None:
        for line in self._lines:
            if self._mark in line:
                return
            _, _, command = line.partition("] ")
            if not command.startswith(('"HSET" ' + self._key, '"HDEL" ' + self._key)):
                continue
            if command.startswith('"HSET"'):
                found = {key: int(size) for key, size in self._ADDED.findall(command)}
                self._changes += len(found.keys() - self._leases.keys())
                self._leases |= found
                self._most = max(self._most, sum(self._leases.values()))
            else:
                for key in self._REMOVED.findall(command):
                    self._changes += self._leases.pop(key, None) is not None


@dataclass(frozen=True)
class Place:
    """Where processes share a pool.

    Attributes:
        url: its address.
        pool: its name.
        missing_url: an address like it where there is nothing.
        missing_words: what is said of that.
        audit: begins to look at the pool, which has to be there.
    """

    url: str
    pool: str
    missing_url: str
    missing_words: str
    audit: Callable[[], Audit]


@pytest.fixture(params=["sqlite", ON_REDIS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A pool that no process has joined, on each carrier."""
    pool = f"pool {os.urandom(4).hex()}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("shared_redis")
        return Place(server.url, pool, "redis://127.0.0.1:1/0", "refused", lambda: RedisAudit(server, pool))
    path = tmp_path / "memory.db"
    missing = f"sqlite:///{tmp_path}/none.db"
    return Place(f"sqlite:///{path}", pool, missing, "No such file", lambda: SqliteAudit(path))


@pytest.fixture
def member(place: Place) -> Iterator[Callable[..., Member]]:
    """Start a process that joins the pool; all are killed at the end."""
    members: list[Member] = []

    def start(*, budget: int, ttl_s: float, name: str = "member") -> Member:
        members.append(Member(place, budget, ttl_s, name))
        return members[-1]

    yield start

    for each in members:
        each.process.send_signal(signal.SIGCONT)
        each.kill()
