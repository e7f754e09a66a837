"""The price of a lease: taking one and giving it back, against the bare transactions and round trips that it needs.

On sqlite the peer writes the same rows in two transactions, without a question of its own. On Redis the peer is the
round trip of a script that returns at once: by the client of redis-py, which is what a program would use that does it
by hand, and on a bare connection, below which nothing in Python goes. The Redis server is one of this benchmark, on a
port of the loopback device. Meanwhile 8 processes hold 100 leases.
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


def run(rounds: int = 15) -> list[Result]:
    """Time both carriers; without a redis-server in the PATH only the one on sqlite."""
    with tempfile.TemporaryDirectory() as folder:
        results = _on_sqlite(Path(folder), rounds)
        if shutil.which("redis-server") is None:
            print("no redis-server in the PATH: Redis is NOT MEASURED")
            return results
        return [*results, *_on_redis(Path(folder), rounds)]


def _on_sqlite(folder: Path, rounds: int) -> list[Result]:
    carrier = SqliteCarrier(str(folder / "own.db"), "p", ttl_s=3600.0, timeout_s=10.0)
    _fill(carrier)
    other = SqliteCarrier(str(folder / "bare.db"), "p", ttl_s=3600.0, timeout_s=10.0)
    _fill(other)  # the same tables and rows
    other.close()
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA synchronous = NORMAL")
    until = time.monotonic() + 3600.0

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
    note = f"time per pair; {timing.median_ns('own') / 1000:.0f} µs"
    return [
        Result(
            "a lease taken and given back, sqlite", "two bare transactions that write the same", timing.ratio("own"),
            2.0, note,
        )
    ]  # fmt: skip


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


def _fill(carrier: Carrier) -> None:
    carrier.open(_BUDGET)
    for number in range(_NODES):
        carrier.publish(_node(f"n{number}"), ())
    for number in range(_LEASES):
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
