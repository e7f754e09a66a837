"""Where work is sent: never where it does not fit, and not all to one place."""

import random
from collections import Counter
from pathlib import Path

import pytest

from memtools.cluster import Node, join
from memtools.cluster._routing import Router
from memtools.readings import Level

GIB = 2**30
MIB = 2**20


class Fleet:
    """Simulated processes that tell their readings every two seconds, and run what they are sent for five."""

    def __init__(self, used_shares: list[float], limit: int = 4 * GIB) -> None:
        self.now = 0.0
        self.limit = limit
        self.base = {f"n{number}": int(share * limit) for number, share in enumerate(used_shares)}
        self.running: dict[str, list[tuple[float, int]]] = {name: [] for name in self.base}
        self.told: dict[str, tuple[float, int]] = dict.fromkeys(self.base, (0.0, 0))
        self.out_of_memory = 0
        self.advance(0.0)

    def used(self, name: str) -> int:
        return self.base[name] + sum(size for _, size in self.running[name])

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for name, running in self.running.items():
            self.running[name] = [(until, size) for until, size in running if until > self.now]
            if not self.told[name][1] or self.now - self.told[name][0] >= 2.0:
                self.told[name] = (self.now, self.used(name))

    def nodes(self) -> list[Node]:
        return [
            Node(name, name, "host", 1, used, self.limit, self.limit - used, Level.NORMAL, 0, self.now - at)
            for name, (at, used) in self.told.items()
        ]

    def run(self, name: str, size: int) -> None:
        self.running[name].append((self.now + 5.0, size))
        self.out_of_memory += self.used(name) > self.limit


def test_no_process_runs_out_of_memory_where_turns_do() -> None:
    draw = random.Random(7)
    fleets = [Fleet([0.9, 0.7, 0.4, 0.1]), Fleet([0.9, 0.7, 0.4, 0.1])]
    ours, in_turn = fleets
    router = Router(clock=lambda: ours.now, draw=random.Random(5).random)
    placed = Counter[str]()
    for number in range(10_000):
        size = draw.randint(20, 120) * MIB
        for fleet in fleets:
            fleet.advance(0.1)
        if number % 5 == 0:  # what is known is half a second old at most
            router.update(ours.nodes())
        node = router.pick(size)
        if node is not None:
            placed[node.id] += 1
            ours.run(node.id, size)
        in_turn.run(f"n{number % 4}", size)

    assert ours.out_of_memory == 0
    assert in_turn.out_of_memory > 1000
    assert placed["n3"] > placed["n1"] > 0


def test_flash_crowd_does_not_fill_one_process() -> None:
    draw = random.Random(3)
    fleet = Fleet([draw.uniform(0.1, 0.6) for _ in range(200)])
    routers = [Router(clock=lambda: fleet.now, draw=draw.random) for _ in range(5)]
    for router in routers:
        router.update(fleet.nodes())
    for number in range(2000):  # before one of them tells again
        node = routers[number % 5].pick(50 * MIB)
        assert node is not None
        fleet.run(node.id, 50 * MIB)

    assert fleet.out_of_memory == 0


def _node(name: str, headroom: int | None, level: Level = Level.NORMAL, age_s: float = 0.0, leased: int = 0) -> Node:
    return Node(name, name, "host", 1, 0, GIB, headroom, level, leased, age_s)


def _pick(router: Router, node: Node, needs: int) -> Node | None:
    router.update([node])
    return router.pick(needs)


@pytest.mark.parametrize("node", [
    _node("full", 10 * MIB), _node("unknown", None), _node("critical", GIB, Level.CRITICAL),
    _node("stale", GIB, age_s=7.0), _node("promised", GIB, leased=GIB),
], ids=lambda node: node.name)  # fmt: skip
def test_nothing_is_sent_where_it_does_not_fit(node: Node) -> None:
    assert _pick(Router(), node, 20 * MIB) is None


def test_process_that_was_critical_gets_nothing_for_a_while() -> None:
    now = [0.0]
    router = Router(clock=lambda: now[0])
    _pick(router, _node("a", GIB, Level.CRITICAL), MIB)

    now[0] = 5.0
    assert _pick(router, _node("a", GIB), MIB) is None
    now[0] = 11.0
    assert _pick(router, _node("a", GIB), MIB) is not None


def test_what_was_sent_counts_until_it_is_told() -> None:
    now = [100.0]
    router = Router(clock=lambda: now[0])

    assert _pick(router, _node("a", 100 * MIB), 60 * MIB) is not None
    assert router.pick(60 * MIB) is None  # before the next reading
    assert router.pick(30 * MIB) is not None  # a smaller one may fit all the same
    now[0] = 101.0
    assert _pick(router, _node("a", 100 * MIB, age_s=1.5), 60 * MIB) is None
    assert _pick(router, _node("a", 100 * MIB, age_s=0.5), 60 * MIB) is not None


def test_only_process_with_room_among_many_is_found() -> None:
    router = Router(draw=random.Random(1).random)
    router.update([_node(f"n{number}", 100 * MIB) for number in range(200)])
    for _ in range(199):
        assert router.pick(60 * MIB) is not None  # each fits once

    last = router.pick(60 * MIB)

    assert last is not None
    assert router.pick(60 * MIB) is None
    assert Counter(size for book in router._books.values() for _, size in book) == {60 * MIB: 200}


def test_more_room_wins_between_two() -> None:
    router = Router()
    router.update([_node("less", 400 * MIB), _node("more", 900 * MIB)])

    placed = Counter(node.id for _ in range(5) if (node := router.pick(100 * MIB)) is not None)

    assert placed == {"more": 5}


def test_process_that_is_gone_is_forgotten() -> None:
    now = [0.0]
    router = Router(clock=lambda: now[0])
    router.update([_node("a", GIB), _node("b", GIB, Level.CRITICAL)])
    router.pick(MIB)

    router.update([])

    assert router.pick(MIB) is None
    assert (router._books, router._held_until) == ({}, {})


def test_pick_asks_the_carrier_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with join(f"sqlite:///{tmp_path}/memory.db", budget=GIB) as cluster:
        asked: list[int] = []
        ask = cluster.nodes
        monkeypatch.setattr(cluster, "nodes", lambda: asked.append(1) or ask())
        for _ in range(100):
            cluster.pick(1)
        assert len(asked) in (1, 2)  # a slow machine may take half a second

        monkeypatch.setattr("memtools.cluster._cluster._ROUTED_S", -1.0)
        cluster.pick(1)
        cluster.pick(1)

    assert len(asked) in (3, 4)
