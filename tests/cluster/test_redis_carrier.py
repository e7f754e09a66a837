"""The Redis carrier on a real server that is killed, frozen, emptied, full, read-only or of another mind."""

import contextlib
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from memtools.cluster import CarrierError, Cluster, join
from memtools.cluster._carrier import HeldLease, LeaseRequest, Node
from memtools.cluster.redis import RedisCarrier
from memtools.errors import ConfigError
from memtools.readings import Level

BUDGET = 1000
TIMEOUT_S = 0.5
GRACE_S = 0.5  # beyond which a call should have ended
BUSY_S = 3.0  # by which a busy machine may delay a single one
SECRET = "open sesame"

MakeRedisCarrier = Callable[..., RedisCarrier]


def _node(key: str = "n", used: int = 0) -> Node:
    return Node(key, key, "host", 1, used, None, None, Level.NORMAL)


def _ask(key: str, size: int, *, waits: bool = False) -> LeaseRequest:
    return LeaseRequest(key, "n", size, waits)


@pytest.fixture
def make() -> Iterator[MakeRedisCarrier]:
    made: list[RedisCarrier] = []

    def carrier(url: str, *, pool: str = "p", ttl_s: float = 15.0, timeout_s: float = TIMEOUT_S) -> RedisCarrier:
        made.append(RedisCarrier(url, pool, ttl_s=ttl_s, timeout_s=timeout_s))
        return made[-1]

    yield carrier

    for each in made:
        each.close()


@pytest.fixture
def carrier(redis_server: Any, make: MakeRedisCarrier) -> RedisCarrier:
    made = make(redis_server.url)
    made.open(BUDGET)
    made.publish(_node(), ())
    return made


def _calls(carrier: RedisCarrier) -> dict[str, Callable[[], object]]:
    return {
        "open": lambda: carrier.open(BUDGET),
        "publish": lambda: carrier.publish(_node(), (HeldLease("a", 1),)),
        "acquire": lambda: carrier.acquire(_ask("b", 1)),
        "withdraw": lambda: carrier.withdraw("b"),
        "release": lambda: carrier.release("b"),
        "nodes": carrier.nodes,
        "figures": carrier.figures,
        "leave": lambda: carrier.leave("n"),
    }


def _answers(carrier: RedisCarrier) -> bool:
    with contextlib.suppress(CarrierError):
        carrier.figures()
        return True
    return False


def _words_of(call: Callable[[], object]) -> str:
    with pytest.raises(CarrierError) as caught:
        call()
    return str(caught.value)


def _granted(carrier: RedisCarrier, key: str, size: int, *, within_s: float) -> str:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        fence = carrier.acquire(_ask(key, size))
        if fence is not None:
            return fence
        time.sleep(0.02)
    raise AssertionError("not granted")


class TestServerThatFails:
    """What a call says, and what is left, where the server does not do its work."""

    def test_every_call_to_a_frozen_server_ends_in_time(self, redis_server: Any, carrier: RedisCarrier) -> None:
        held = carrier.acquire(_ask("a", 500))
        redis_server.freeze()

        took_s: list[float] = []
        for name, call in _calls(carrier).items():
            began = time.monotonic()
            assert "does not answer" in _words_of(call), name
            took_s.append(time.monotonic() - began)
        redis_server.thaw()

        assert statistics.median(took_s) < TIMEOUT_S + GRACE_S
        assert max(took_s) < TIMEOUT_S + BUSY_S
        assert carrier.acquire(_ask("a", 500)) == held
        assert carrier.publish(_node(), (HeldLease("a", 500),)) == ()

    def test_server_that_is_killed_comes_back_with_nothing(self, redis_server: Any, carrier: RedisCarrier) -> None:
        before = carrier.acquire(_ask("a", 500)) or ""
        redis_server.stop()
        for name, call in _calls(carrier).items():
            assert f"127.0.0.1:{redis_server.port}" in _words_of(call), name
        redis_server.start()

        lost = carrier.publish(_node(used=300), (HeldLease("a", 500), HeldLease("local", 100, is_local=True)))
        after = _granted(carrier, "b", 500, within_s=10)

        assert lost == ("a",)
        assert carrier.figures().used_bytes == 600
        assert before.partition(":")[0] != after.partition(":")[0]
        assert int(before.partition(":")[2]) < int(after.partition(":")[2])

    def test_emptied_server_loses_the_leases(self, redis_server: Any, carrier: RedisCarrier) -> None:
        carrier.acquire(_ask("a", 500))

        redis_server.command("FLUSHALL")

        assert carrier.release("a") is False
        assert carrier.publish(_node(), (HeldLease("a", 500),)) == ("a",)
        assert carrier.figures().leased_bytes == 0

    def test_nothing_is_granted_before_members_have_told(self, redis_server: Any, carrier: RedisCarrier) -> None:
        redis_server.command("FLUSHALL")

        assert carrier.acquire(_ask("a", 500, waits=True)) is None
        carrier.publish(_node("other", used=900), ())
        time.sleep(2.6)

        assert carrier.acquire(_ask("a", 500, waits=True)) is None
        assert carrier.acquire(_ask("b", 50)) is None  # behind it
        carrier.withdraw("a")
        assert carrier.acquire(_ask("b", 50)) is not None

    def test_first_lease_of_a_new_pool_is_granted_at_once(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(redis_server.url)
        carrier.open(BUDGET)

        assert carrier.acquire(_ask("a", 500)) is not None

    @pytest.mark.parametrize("name", ["pool", "times", "queue"])
    def test_dropped_key_makes_the_pool_anew(self, name: str, redis_server: Any, carrier: RedisCarrier) -> None:
        carrier.acquire(_ask("a", 900))
        carrier.acquire(_ask("b", 900, waits=True))

        redis_server.command("DEL", f"memtools:{{p}}:{name}")

        assert carrier.publish(_node(used=100), (HeldLease("a", 900),)) == ("a",)
        assert carrier.figures().used_bytes == 100
        assert carrier.figures().waiting == 0
        assert redis_server.command("ZCARD", "memtools:{p}:times") == 1

    def test_scripts_that_were_flushed_are_sent_again(self, redis_server: Any, carrier: RedisCarrier) -> None:
        redis_server.command("SCRIPT", "FLUSH")

        assert carrier.acquire(_ask("a", 1)) is not None

    def test_replica_refuses_to_write(self, redis_server: Any, carrier: RedisCarrier) -> None:
        redis_server.command("CONFIG", "SET", "replica-read-only", "yes")
        redis_server.command("REPLICAOF", "127.0.0.1", "1")

        words = _words_of(lambda: carrier.acquire(_ask("a", 1)))
        redis_server.command("REPLICAOF", "NO", "ONE")

        assert "read only replica" in words
        assert carrier.acquire(_ask("a", 1)) is not None

    def test_server_that_loads_its_data_says_so_and_comes_back(self, start_redis: Any, make: MakeRedisCarrier) -> None:
        # It pauses after each key for so many µs, and answers now and then: options for Redis's own tests.
        server = start_redis("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        carrier = make(server.url)
        carrier.open(BUDGET)
        held = carrier.acquire(_ask("a", 500))
        server.command("EVAL", "for n = 1, 3000 do redis.call('SET', n, string.rep('x', 100)) end", 0)
        server.command("SAVE")
        server.stop()
        carrier.close()
        server.start()

        for name in ("publish", "acquire", "figures"):
            assert "loading the dataset" in _words_of(_calls(carrier)[name]), name

        assert _becomes(lambda: _answers(carrier))
        assert carrier.acquire(_ask("a", 500)) == held
        assert carrier.figures().leased_bytes == 500

    def test_full_server_says_so_and_takes_back(self, redis_server: Any, carrier: RedisCarrier) -> None:
        carrier.acquire(_ask("a", 500))
        redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis_server.command("CONFIG", "SET", "maxmemory", "1")

        words = _words_of(lambda: carrier.acquire(_ask("b", 100)))
        redis_server.command("CONFIG", "SET", "maxmemory", "0")

        assert "maxmemory" in words
        assert carrier.figures().leased_bytes == 500
        assert carrier.acquire(_ask("b", 100)) is not None

    def test_pool_with_another_budget_meanwhile_is_an_error(
        self, redis_server: Any, carrier: RedisCarrier, make: MakeRedisCarrier
    ) -> None:
        redis_server.command("FLUSHALL")
        other = make(redis_server.url)
        other.open(2 * BUDGET)
        other.publish(_node("other"), ())

        assert "a budget of 2000 bytes" in _words_of(lambda: carrier.publish(_node(), ()))
        with pytest.raises(ConfigError, match="2000 bytes"):
            carrier.open(BUDGET)

    def test_connection_that_was_closed_is_made_again(self, redis_server: Any, carrier: RedisCarrier) -> None:
        redis_server.command("CLIENT", "KILL", "TYPE", "normal")

        with contextlib.suppress(CarrierError):
            carrier.figures()

        assert carrier.figures().leases == 0


class TestServerThatNeverAnswers:
    """A server that accepts a connection, and no more."""

    def test_handshake_ends_in_time(self, make: MakeRedisCarrier) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            carrier = make(f"redis://user:{quote(SECRET)}@127.0.0.1:{port}/3")
            began = time.monotonic()

            words = _words_of(lambda: carrier.open(BUDGET))

        assert time.monotonic() - began < TIMEOUT_S + BUSY_S
        assert SECRET not in words

    def test_answers_that_come_slowly_share_one_deadline(self, make: MakeRedisCarrier) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            answering = threading.Thread(target=_answer_slowly, args=(server,))
            answering.start()
            carrier = make(f"redis://:{quote(SECRET)}@127.0.0.1:{server.getsockname()[1]}/3")
            began = time.monotonic()

            _words_of(lambda: carrier.open(BUDGET))
            took_s = time.monotonic() - began
            carrier.close()
            answering.join()

        assert took_s < TIMEOUT_S + BUSY_S

    def test_url_cannot_make_a_call_wait_for_longer(self, make: MakeRedisCarrier) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0?socket_timeout=60&retry_on_timeout=yes"
            began = time.monotonic()

            _words_of(lambda: make(url).open(BUDGET))

        assert time.monotonic() - began < TIMEOUT_S + BUSY_S


def _answer_slowly(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        while connection.recv(1000):
            select.select([], [], [], 0.4 * TIMEOUT_S)
            connection.sendall(b"+OK\r\n")


class TestAddresses:
    """What an address may say, and what is said of one that is wrong."""

    def test_wrong_password_is_a_carrier_error(self, start_redis: Any, make: MakeRedisCarrier) -> None:
        port = start_redis("--requirepass", SECRET).port
        wrong = make(f"redis://:not-the-one@127.0.0.1:{port}/0")
        right = make(f"redis://:{quote(SECRET)}@127.0.0.1:{port}/0")
        none = make(f"redis://127.0.0.1:{port}/0")

        assert "password" in _words_of(lambda: wrong.open(BUDGET))
        assert "not-the-one" not in _words_of(lambda: wrong.open(BUDGET))
        assert "Authentication required" in _words_of(lambda: none.open(BUDGET))
        right.open(BUDGET)

    def test_wrong_database_is_a_carrier_error(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(f"redis://127.0.0.1:{redis_server.port}/99")

        assert "DB index is out of range" in _words_of(lambda: carrier.open(BUDGET))

    def test_unix_socket(self, start_redis: Any, make: MakeRedisCarrier, tmp_path: Path) -> None:
        path = tmp_path / "redis.sock"
        start_redis("--unixsocket", str(path))
        carrier = make(f"unix://{path}?db=1")
        carrier.open(BUDGET)

        assert carrier.acquire(_ask("a", 1)) is not None

    @pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
    def test_missing_unix_socket_is_named(self, make: MakeRedisCarrier, tmp_path: Path) -> None:
        assert str(tmp_path / "none.sock") in _words_of(lambda: make(f"unix://{tmp_path}/none.sock").open(BUDGET))

    def test_host_name_that_cannot_be_one_is_a_carrier_error(self, make: MakeRedisCarrier) -> None:
        _words_of(lambda: make(f"redis://{'a' * 70}.example/0").open(BUDGET))

    @pytest.mark.parametrize("options", ["decode_responses=True", "protocol=3", "max_connections=1", "client_name=x"])
    def test_options_of_redis_py_do_no_harm(self, options: str, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(f"{redis_server.url}?{options}")
        carrier.open(BUDGET)
        carrier.publish(_node(), ())

        assert carrier.acquire(_ask("a", 1, waits=True)) is not None
        assert carrier.acquire(_ask("b", BUDGET, waits=True)) is None
        assert [node.id for node in carrier.nodes()] == ["n"]

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://user:{SECRET}@host:port/0",
            f"redis://user:pass#{SECRET}@host/0",
            f"redis://host/0?db=none&password={SECRET}",
            f"rediss://:{SECRET}@host/0?ssl_cert_reqs=perhaps",
            f"redis://:{SECRET}@host/0?color=red",
            f"reds://:{SECRET}@host/0",
            f"redis:user:{SECRET}@host",
        ],
    )
    def test_address_that_is_refused_shows_no_password(self, url: str) -> None:
        with pytest.raises(ConfigError) as caught:
            join(url, budget=BUDGET)

        assert SECRET not in str(caught.value)
        assert "redis://" in caught.value.accepted
        assert caught.value.__cause__ is None

    def test_option_that_does_not_exist_is_named(self) -> None:
        with pytest.raises(ConfigError, match="color"):
            join("redis://host/0?color=red", budget=BUDGET)

    def test_budget_that_lua_cannot_count_is_refused(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        with pytest.raises(ConfigError, match="9007199254740992"):
            make(redis_server.url).open(2**53 + 1)

    def test_missing_library_is_named_with_its_extra(self) -> None:
        program = "import sys; sys.modules['redis'] = None; from memtools.cluster import join; join({!r}, budget=1)"
        command = [sys.executable, "-c", program.format(f"redis://:{SECRET}@host")]

        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert "pip install 'memtools[redis]'" in done.stderr.splitlines()[-1]

    def test_tls(self, start_redis: Any, make: MakeRedisCarrier, tmp_path: Path) -> None:
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = start_redis()
        files = ("tls-cert-file", "tls-key-file")
        try:
            settings = [word for name in files for word in (name, str(tmp_path / "server.pem"))]
            server.command("CONFIG", "SET", *settings, "tls-auth-clients", "no", "tls-port", port)
        except Exception as error:
            pytest.skip(f"this redis-server has no TLS: {error}")
        carrier = make(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}", timeout_s=5)
        carrier.open(BUDGET)

        assert carrier.acquire(_ask("a", 1)) is not None
        assert "certificate" in _words_of(lambda: make(f"rediss://127.0.0.1:{port}/0", timeout_s=5).open(BUDGET))


class TestKeys:
    """What lies on the server."""

    @pytest.mark.parametrize("pool", ["workers", "a}b", "}", "{x}", "ünï 100%"])
    def test_keys_have_one_hash_tag_and_expire(self, pool: str, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(redis_server.url, pool=pool)
        carrier.open(BUDGET)
        carrier.publish(_node(), (HeldLease("a", 900, is_local=True),))
        carrier.acquire(_ask("b", 900, waits=True))

        keys = redis_server.command("KEYS", "*")

        tags = {key.partition(b"{")[2].partition(b"}")[0] for key in keys}
        assert len(keys) == 3
        assert len(tags) == 1
        assert tags != {b""}
        for key in keys:
            assert 0 < redis_server.command("PTTL", key) <= 15_000 + 60_000

    def test_looking_at_a_pool_leaves_no_key(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(redis_server.url)

        assert carrier.figures().budget_bytes == 0
        assert carrier.nodes() == ()
        assert redis_server.command("KEYS", "*") == []

    def test_keys_of_an_empty_pool_expire(self, redis_server: Any, carrier: RedisCarrier) -> None:
        carrier.leave("n")

        assert redis_server.command("KEYS", "*") == [b"memtools:{p}:pool"]
        assert 0 < redis_server.command("PTTL", "memtools:{p}:pool") <= 75_000

    def test_keys_that_come_again_expire_too(self, redis_server: Any, carrier: RedisCarrier) -> None:
        carrier.leave("n")
        carrier.publish(_node(), ())
        carrier.acquire(_ask("a", 900))
        for _ in range(2):
            carrier.acquire(_ask("b", 900, waits=True))
            assert 0 < redis_server.command("PTTL", "memtools:{p}:queue") <= 75_000
            carrier.withdraw("b")

        assert 0 < redis_server.command("PTTL", "memtools:{p}:times") <= 75_000

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_forked_child_leaves_the_connection_alone(self, carrier: RedisCarrier) -> None:
        child = os.fork()
        if child == 0:
            carrier.abandon()
            os._exit(0)
        os.waitpid(child, 0)

        assert carrier.figures().leases == 0

    def test_thousands_of_leases_expire_at_once(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        carrier = make(redis_server.url, ttl_s=0.5, timeout_s=20)
        carrier.open(2**40)
        local = tuple(HeldLease(f"lease {number}", 1, is_local=True) for number in range(2_000))
        for start in range(0, len(local), 500):
            carrier.publish(_node(), local[start : start + 500])
        assert carrier.figures().leases > 0
        time.sleep(0.6)

        found = carrier.figures()

        assert (found.leases, found.leased_bytes, found.used_bytes) == (0, 0, 0)
        assert redis_server.command("HKEYS", "memtools:{p}:pool") == [b"state"]


class TestManyAtOnce:
    """Many connections that take and give back at random."""

    def test_no_more_than_the_budget_is_leased(self, redis_server: Any, make: MakeRedisCarrier) -> None:
        carriers = [make(redis_server.url, timeout_s=10) for _ in range(8)]
        for each in carriers:
            each.open(BUDGET)
        most = [0] * len(carriers)

        threads = [
            threading.Thread(target=_take_and_give, args=(number, carrier, most))
            for number, carrier in enumerate(carriers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert 0 < max(most) <= 950
        fields = redis_server.command("HGETALL", "memtools:{p}:pool").items()
        leases = [int(value.split()[0]) for name, value in fields if name.startswith(b"lease:")]
        sums = [int(value.split()[0]) for name, value in fields if name.startswith(b"bytes:")]
        found = carriers[0].figures()
        assert (found.leases, found.leased_bytes) == (len(leases), sum(leases))
        assert sum(sums) == sum(leases)


def _take_and_give(number: int, carrier: RedisCarrier, most: list[int]) -> None:
    draw = random.Random(number)
    for turn in range(200):
        key = f"{number} {draw.randrange(5)}"
        if draw.random() < 0.5:
            carrier.release(key)
        else:
            carrier.acquire(LeaseRequest(key, f"n{number}", draw.choice((1, 50, 300)), draw.random() < 0.3))
        if turn % 5 == 0:
            most[number] = max(most[number], carrier.figures().leased_bytes)


@pytest.mark.once
class TestRedisCluster:
    """Two servers that share the keys."""

    def test_pool_is_found_on_the_other_server(self, redis_cluster: tuple[Any, Any], make: MakeRedisCarrier) -> None:
        for server in redis_cluster:
            for pool in ("a", "b", "c", "d"):
                carrier = make(server.url, pool=pool, timeout_s=5)
                carrier.open(BUDGET)
                carrier.publish(_node(), ())
                assert carrier.nodes()[0].id == "n"

        assert all(server.command("DBSIZE") > 0 for server in redis_cluster)

    def test_pool_that_is_moved_is_away_meanwhile(self, redis_cluster: tuple[Any, Any], make: MakeRedisCarrier) -> None:
        source, target = redis_cluster
        pool = _pool_of(source)
        slot = source.command("CLUSTER", "KEYSLOT", pool)
        keys = [f"memtools:{{{pool}}}:{name}" for name in ("pool", "times", "queue")]
        carrier = make(source.url, pool=pool, timeout_s=5)
        carrier.open(BUDGET)
        carrier.publish(_node(), ())
        held = carrier.acquire(_ask("a", 500))
        names = [server.command("CLUSTER", "MYID").decode() for server in redis_cluster]

        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", keys[0])
        half = _words_of(lambda: carrier.acquire(_ask("b", 100)))
        source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[1:])
        whole = _words_of(lambda: carrier.acquire(_ask("b", 100)))
        for server in (target, source):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", names[1])

        assert "the Redis Cluster is moving this pool" in half
        assert "the Redis Cluster is moving this pool" in whole
        assert carrier.acquire(_ask("a", 500)) == held
        assert carrier.publish(_node(), (HeldLease("a", 500),)) == ()

    def test_pool_on_another_server_than_that_of_the_socket(
        self, redis_cluster: tuple[Any, Any], make: MakeRedisCarrier
    ) -> None:
        first, second = redis_cluster
        carrier = make(f"unix://{first.folder}/redis.sock", pool=_pool_of(second), timeout_s=5)

        assert f"the Redis Cluster has this pool on 127.0.0.1:{second.port}" in _words_of(lambda: carrier.open(BUDGET))

    def test_server_that_is_named_and_gone_is_asked_no_more(
        self, redis_cluster: tuple[Any, Any], make: MakeRedisCarrier
    ) -> None:
        first, second = redis_cluster
        carrier = make(first.url, pool=_pool_of(second), timeout_s=5)
        carrier.open(BUDGET)
        second.stop()

        assert f":{second.port}" in _words_of(carrier.figures)
        second.start()
        for server in redis_cluster:
            server.wait_for_cluster()

        carrier.open(BUDGET)
        assert carrier.acquire(_ask("a", 1)) is not None


def _pool_of(server: Any) -> str:
    """Return the name of a pool whose keys lie there."""
    own = next(line for line in server.command("CLUSTER", "NODES").decode().splitlines() if "myself" in line)
    first, last = map(int, own.split()[-1].split("-"))
    while True:
        pool = os.urandom(4).hex()
        if first <= server.command("CLUSTER", "KEYSLOT", pool) <= last:
            return pool


class TestMembers:
    """Processes that share a budget over a server."""

    def test_held_lease_goes_on_while_the_server_is_frozen(self, redis_server: Any) -> None:
        with join(redis_server.url, budget="10 GiB", ttl=30) as cluster, cluster.lease("2 GiB") as held:
            redis_server.freeze()
            with cluster.lease("1 GiB", timeout=5) as local:
                assert local.is_local
            redis_server.thaw()

            assert _becomes(lambda: not _is_next_local(cluster))
            assert not held.is_lost
            assert cluster.statistics().leased_bytes == 2 * 2**30

    def test_lease_is_lost_with_the_server(self, redis_server: Any) -> None:
        lost: list[object] = []
        with join(redis_server.url, budget="10 GiB", ttl=3, on_lease_lost=lost.append) as cluster:
            with cluster.lease("2 GiB") as held:
                redis_server.stop()
                redis_server.start()

                assert _becomes(lambda: lost)
                assert lost == [held]
                assert held.is_lost
            assert _becomes(lambda: not _is_next_local(cluster))


def _is_next_local(cluster: Cluster) -> bool:
    with cluster.lease("1 GiB", timeout=10) as lease:
        return lease.is_local


def _becomes(holds: Callable[[], object], *, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
