"""Which growth explains a leak: the program's before that of libraries, each holder once."""

from dataclasses import replace

import pytest

from memtools.analysis import LeakKind, LeakVerdict
from memtools.heap import HeapGrowth, ReferrerPath, WhyAlive
from memtools.leaks._ranking import explain_in_bytes, is_informative, ranked, suspects

MIB = 1 << 20
PYTHON = LeakVerdict(LeakKind.PYTHON, MIB, 900.0, 15.0, "blocks grow")


def answer(growth: HeapGrowth, *holders: str, is_rooted: bool = True) -> WhyAlive:
    return WhyAlive(growth.type_name, growth.after, "", (ReferrerPath(holders, 1, is_rooted, ""),), growth)


def container(rate: float, *holders: str, name: str = "list", is_rooted: bool = True) -> WhyAlive:
    return answer(HeapGrowth(name, 100, 700, rate, 1), *holders, is_rooted=is_rooted)


def of_type(name: str, rate: float, *holders: str, is_rooted: bool = True) -> WhyAlive:
    return answer(HeapGrowth(name, 100, 700, rate), *holders, is_rooted=is_rooted)


def large(rate_bytes: float, *holders: str) -> WhyAlive:
    growth = HeapGrowth("bytes", 1, 9, 0.5, bytes_per_second=rate_bytes, size_bytes=9 * MIB, large=(1,))
    return answer(growth, *holders)


def told(*answers: WhyAlive) -> list[str]:
    return [f"{one.what} {one.paths[0].holders[-1]}" for one in ranked(answers, PYTHON)]


def test_session_comes_before_its_timers_and_sockets() -> None:
    timers = of_type("asyncio.events.TimerHandle", 40.0, "list[7]", "asyncio.base_events.BaseEventLoop._scheduled")
    sockets = of_type("socket.socket", 26.0, "bound method read_ready", is_rooted=False)
    sessions = of_type("client.Session", 20.0, "list[7]", "shop.Client.sessions", "shop.client")

    assert told(timers, sockets, sessions) == ["client.Session shop.client"]


def test_session_that_a_timer_holds_comes_before_the_timer() -> None:
    loop = "asyncio.base_events.BaseEventLoop._scheduled"
    timers = container(20.0, loop)
    cookies = of_type("client.CookieJar", 40.0, "client.Session.cookies", "asyncio.events.TimerHandle._args", loop)
    sessions = of_type("client.Session", 20.0, "asyncio.events.TimerHandle._args", "list[8]", loop)

    assert is_informative(sessions, [timers])
    assert told(timers, cookies, sessions)[0] == f"client.Session {loop}"


def test_growth_in_bytes_of_few_items_is_of_python() -> None:
    native = LeakVerdict(LeakKind.NATIVE, MIB, 9.0, 15.0, "malloc grows")
    queue = container(60.0, "shop.inbox")

    assert not explain_in_bytes([queue], native)
    assert explain_in_bytes([replace(queue, held_bytes=700 * 8_000)], native)


def test_holder_is_told_once() -> None:
    orders = container(30.0, "shop.Desk.orders", "shop.desk", name="dict")
    lists = container(20.0, "dict[<str, 3 characters>]", "shop.Desk.orders", "shop.desk")
    others = container(25.0, "dict[<str, 8 characters>]", "shop.Desk.orders", "shop.desk")

    assert told(lists, orders, others) == ["dict shop.desk"]


def test_two_holders_are_told() -> None:
    orders = container(30.0, "shop.Desk.orders", "shop.desk")
    trades = container(29.0, "shop.Desk.trades", "shop.desk")

    assert len(told(orders, trades)) == 2


def test_large_objects_that_explain_the_growth_come_first() -> None:
    names = container(300.0, "shop.names")
    frames = large(0.8 * MIB, "list[3]", "shop.frames")

    assert told(names, frames) == ["bytes shop.frames", "list shop.names"]
    assert explain_in_bytes([names, frames], PYTHON)


def test_few_large_objects_beside_a_leak_come_last() -> None:
    names = container(300.0, "shop.names")
    frames = large(0.01 * MIB, "list[3]", "shop.frames")

    assert told(frames, names) == ["list shop.names", "bytes shop.frames"]
    assert not explain_in_bytes([names, frames], PYTHON)


def test_container_of_large_objects_is_told_with_its_own_rate() -> None:
    buffers = large(0.9 * MIB, "dict[<int>]", "shop.Desk.orders", "shop.desk")
    orders = container(30.0, "shop.Desk.orders", "shop.desk", name="dict")

    assert told(buffers, orders) == ["dict shop.desk"]


def test_chains_of_different_length_are_one_holder() -> None:
    first = of_type("shop.Link", 30.0, "shop.Link.before, 1,200 times", "ContextVar 'trail'")
    second = of_type("shop.Body", 30.0, "shop.Link.body", "shop.Link.before, 9 times", "ContextVar 'trail'")
    other = of_type("shop.Mark", 30.0, "shop.Link.before, 9 times", "ContextVar 'mark'")

    assert len(told(first, second, other)) == 2


def test_suspects_are_sorted_by_kind() -> None:
    grown = [
        HeapGrowth("list", 1, 99, 9.0, 1),
        HeapGrowth("socket.socket", 1, 99, 9.0),
        HeapGrowth("shop.Order", 1, 99, 5.0),
        HeapGrowth("memtools.leaks._samples.Samples", 1, 99, 9.0, 2),
        HeapGrowth("memtools.ledger._owner.Owner", 1, 99, 9.0),
        HeapGrowth("bytes", 1, 9, 0.5, bytes_per_second=MIB, size_bytes=MIB, large=(1,)),
    ]

    assert [one.type_name for one in suspects(grown)] == ["bytes", "list", "shop.Order", "socket.socket"]


@pytest.mark.parametrize(
    "uninformative",
    [
        container(9.0),
        container(9.0, "list[1]", "memtools.events.listeners"),
        container(9.0, "memtools.leaks._investigation.Investigation._counts", "frame of main, variable one"),
        of_type("shop.Order", 9.0, "dict[<int>]", "shop.orders"),
    ],
)
def test_answer_that_adds_nothing_is_left_out(uninformative: WhyAlive) -> None:
    assert not is_informative(uninformative, [container(9.0, "shop.orders")])
