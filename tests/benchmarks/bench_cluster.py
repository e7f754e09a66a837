"""The price of a lease: taking one and giving it back, against the bare transactions and round trips that it needs.

On sqlite the peer writes a number and the lease in two transactions of a file of its own, with no more in it: no sums,
no queue, no question; while no other lease is held, and 100 or 1,000. On Redis the peer is the round trip of a script
that returns at once: by the client of redis-py, which is what a program would use that does it by hand, and on a bare
connection, below which nothing in Python goes. The Redis server is one of this benchmark, on a port of the loopback
device. Meanwhile 8 processes hold 100 leases.
"""

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _compare import Result, compare, print_results

from memtools.cluster._carrier import Carrier, LeaseRequest, Node
from memtools.cluster._sqlite import SqliteCarrier
from memtools.readings import Level

_BUDGET = 2**40
_NODES = 8
_LEASES = 100  # that others hold meanwhile
_BARE = """
PRAGMA page_size = 2048;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE pool (name TEXT PRIMARY KEY, budget INTEGER NOT NULL, boot TEXT NOT NULL, counter INTEGER NOT NULL);
CREATE TABLE lease (
    pool TEXT NOT NULL, id TEXT NOT NULL, node TEXT NOT NULL, bytes INTEGER NOT NULL, fence TEXT NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (pool, id)
) WITHOUT ROWID;
INSERT INTO pool VALUES ('p', 1099511627776, 'boot', 0);
"""


def run(rounds: int = 15) -> list[Result]:
    """Time both carriers; without a redis-server in the PATH only the one on sqlite."""
    with tempfile.TemporaryDirectory() as folder:
        results = [_on_sqlite(Path(folder), leases, rounds) for leases in (0, _LEASES, 1000)]
        if shutil.which("redis-server") is None:
            print("no redis-server in the PATH: Redis is NOT MEASURED")
            return results
        return [*results, *_on_redis(Path(folder), rounds)]


def _on_sqlite(folder: Path, leases: int, rounds: int) -> Result:
    carrier = SqliteCarrier(str(folder / f"own {leases}.db"), "p", ttl_s=3600.0, timeout_s=10.0)
    _fill(carrier, leases)
    bare = sqlite3.connect(folder / f"bare {leases}.db", isolation_level=None)
    bare.executescript(_BARE)
    until = time.monotonic() + 3600.0
    for number in range(leases):
        values = ("p", f"held {number}", f"n{number % _NODES}", 2**20, "x:1", until)
        bare.execute("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)", values)

    def by_hand() -> None:
        bare.execute("BEGIN IMMEDIATE")
        bare.execute("UPDATE pool SET counter = counter + 1 WHERE name = ?", ("p",))
        bare.execute("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)", ("p", "a", "n0", 1, "x:1", until))
        bare.execute("COMMIT")
        bare.execute("BEGIN IMMEDIATE")
        bare.execute("DELETE FROM lease WHERE pool = ? AND id = ?", ("p", "a"))
        bare.execute("COMMIT")

    timing = compare({"own": _take_and_give(carrier), "bare": by_hand}, number=300, rounds=rounds, baseline="bare")
    carrier.close()
    bare.close()
    title = f"a lease taken and given back beside {leases:,} others, sqlite"
    note = f"time per pair; {timing.median_ns('own') / 1000:.0f} µs"
    return Result(title, "two bare transactions that write the same lease", timing.ratio("own"), 2.0, note)


def _on_redis(folder: Path, rounds: int) -> list[Result]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return _against_round_trips(port, rounds)
    finally:
        server.kill()
        server.wait()


def _against_round_trips(port: int, rounds: int) -> list[Result]:
    from redis import Redis

    from memtools.cluster.redis import RedisCarrier

    carrier = RedisCarrier(f"redis://127.0.0.1:{port}/0", "p", ttl_s=3600.0, timeout_s=10.0)
    client = Redis(port=port)
    _wait_for(client)
    _fill(carrier)
    sha: Any = client.script_load("return 1")
    keys = [f"memtools:{{p}}:{name}" for name in ("pool", "times", "queue")]
    connection: Any = client.connection_pool.get_connection()

    def by_client() -> None:
        client.evalsha(sha, 3, *keys, "acquire", "a", "n0", 1, 1)
        client.evalsha(sha, 3, *keys, "release", "a")

    def bare() -> None:
        connection.send_command("EVALSHA", sha, 3, *keys, "acquire", "a", "n0", 1, 1)
        connection.read_response()
        connection.send_command("EVALSHA", sha, 3, *keys, "release", "a")
        connection.read_response()

    timing = compare(
        {"own": _take_and_give(carrier), "client": by_client, "bare": bare},
        number=300, rounds=rounds, baseline="client",
    )  # fmt: skip
    carrier.close()
    client.connection_pool.release(connection)
    client.close()
    title = "a lease taken and given back, Redis"
    note = f"time per pair; {timing.median_ns('own') / 1000:.0f} µs"
    own, floor = timing.rounds_ns["own"], timing.rounds_ns["bare"]
    to_floor = sorted(one / other for one, other in zip(own, floor, strict=True))[len(own) // 2]
    return [
        Result(title, "two bare EVALSHA of redis-py", timing.ratio("own"), 1.3, note),
        Result(title, "two on a bare connection of redis-py", to_floor, 2.0, "time per pair, for information"),
    ]


def _wait_for(client: Any) -> None:
    from redis.exceptions import ConnectionError as NotYet

    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            client.ping()
        except NotYet:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the Redis server did not start")


def _fill(carrier: Carrier, leases: int = _LEASES) -> None:
    carrier.open(_BUDGET)
    for number in range(_NODES):
        carrier.publish(_node(f"n{number}"), ())
    for number in range(leases):
        carrier.acquire(LeaseRequest(f"held {number}", f"n{number % _NODES}", 2**20, waits=False))


def _node(key: str) -> Node:
    return Node(key, key, "host", os.getpid(), 2**26, 2**30, 2**29, Level.NORMAL)


def _take_and_give(carrier: Carrier) -> Callable[[], None]:
    request = LeaseRequest("a", "n0", 1, waits=True)

    def pair() -> None:
        carrier.acquire(request)
        carrier.release("a")

    return pair


if __name__ == "__main__":
    print_results(run())
