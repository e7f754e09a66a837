"""What every carrier promises in its calls, on sqlite and on a real Redis."""

import os
import random
import time
from collections.abc import Callable

import pytest

from memtools.cluster._carrier import Carrier, HeldLease, LeaseRequest, Node
from memtools.errors import ConfigError
from memtools.readings import Level

MakeCarrier = Callable[..., Carrier]

BUDGET = 1000
USABLE = 950
USABLE_CRITICAL = 800


def _node(key: str = "n", used: int = 0, level: Level = Level.NORMAL) -> Node:
    return Node(key, f"name of {key}", "host", os.getpid(), used, 2000, 1500, level, interval_s=2.5)


def _ask(key: str, size: int, *, node: str = "n", waits: bool = False) -> LeaseRequest:
    return LeaseRequest(key, node, size, waits)


@pytest.fixture
def carrier(make_carrier: MakeCarrier) -> Carrier:
    made = make_carrier()
    made.open(BUDGET)
    return made


class TestGrants:
    """What is granted, and what is counted for it."""

    def test_request_is_granted_up_to_the_reserve(self, carrier: Carrier) -> None:
        assert carrier.acquire(_ask("a", USABLE)) is not None
        assert carrier.acquire(_ask("b", 1)) is None
        assert carrier.figures().used_bytes == USABLE

    def test_same_request_is_granted_once(self, carrier: Carrier) -> None:
        first = carrier.acquire(_ask("a", 500))

        assert carrier.acquire(_ask("a", 500)) == first
        assert carrier.figures().leases == 1

    def test_larger_of_leased_and_measured_counts(self, carrier: Carrier) -> None:
        carrier.publish(_node("a", used=300), ())
        carrier.acquire(_ask("1", 200, node="a"))
        assert carrier.figures().used_bytes == 300

        carrier.acquire(_ask("2", 200, node="a"))
        assert carrier.figures().used_bytes == 400

        carrier.publish(_node("b", used=100), ())
        carrier.release("2")
        assert carrier.figures().used_bytes == 400
        assert carrier.figures().leased_bytes == 200

    def test_reserve_is_larger_while_a_process_is_critical(self, carrier: Carrier) -> None:
        carrier.publish(_node(level=Level.CRITICAL), ())
        assert carrier.figures().usable_bytes == USABLE_CRITICAL
        assert carrier.acquire(_ask("a", USABLE_CRITICAL + 1)) is None

        carrier.publish(_node(level=Level.NORMAL), ())
        assert carrier.figures().usable_bytes == USABLE
        assert carrier.acquire(_ask("a", USABLE_CRITICAL + 1)) is not None

    def test_process_that_leaves_is_critical_no_more(self, carrier: Carrier) -> None:
        carrier.publish(_node(level=Level.CRITICAL), ())
        carrier.publish(_node(level=Level.CRITICAL), ())

        carrier.leave("n")

        assert carrier.figures().usable_bytes == USABLE

    def test_fences_rise(self, carrier: Carrier) -> None:
        fences = [carrier.acquire(_ask(str(number), 1)) for number in range(5)]

        numbers = [int((fence or "").rpartition(":")[2]) for fence in fences]
        assert numbers == sorted(set(numbers))
        assert len({(fence or "").partition(":")[0] for fence in fences}) == 1

    def test_pools_do_not_see_each_other(self, make_carrier: MakeCarrier) -> None:
        first, second = make_carrier(pool="p"), make_carrier(pool="p}:{q")
        first.open(BUDGET)
        second.open(2 * BUDGET)

        first.acquire(_ask("a", USABLE))

        assert second.acquire(_ask("a", USABLE)) is not None
        assert second.figures().budget_bytes == 2 * BUDGET


class TestQueue:
    """First come, first served."""

    def test_large_request_is_not_starved(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("held", 600))
        assert carrier.acquire(_ask("large", 900, waits=True)) is None

        assert carrier.acquire(_ask("small", 10, waits=True)) is None
        assert carrier.acquire(_ask("at once", 10)) is None
        carrier.release("held")
        assert carrier.acquire(_ask("small", 10, waits=True)) is None
        assert carrier.acquire(_ask("large", 900, waits=True)) is not None

        assert carrier.acquire(_ask("small", 10, waits=True)) is not None
        assert carrier.figures().waiting == 0

    def test_order_is_that_of_the_first_question(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("held", USABLE))
        for key in ("a", "b", "c", "b", "a"):
            carrier.acquire(_ask(key, USABLE, waits=True))
        carrier.release("held")

        granted = [key for key in ("c", "b", "a") if carrier.acquire(_ask(key, 1, waits=True)) is not None]

        assert granted == ["a"]

    def test_request_that_is_not_repeated_loses_its_place(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("held", 600))
        carrier.acquire(_ask("large", 900, waits=True))

        time.sleep(2.1)

        assert carrier.acquire(_ask("small", 10)) is not None
        assert carrier.figures().waiting == 0

    def test_withdrawn_request_holds_up_no_other(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("held", 600))
        carrier.acquire(_ask("large", 900, waits=True))

        carrier.withdraw("large")

        assert carrier.acquire(_ask("small", 10)) is not None

    def test_withdrawing_gives_back_what_was_granted(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("a", 600))

        carrier.withdraw("a")
        carrier.withdraw("a")

        assert carrier.figures().leased_bytes == 0


class TestExpiry:
    """What is not renewed in time is no longer valid."""

    def test_lease_expires(self, make_carrier: MakeCarrier) -> None:
        carrier = make_carrier(ttl_s=1.0)
        carrier.open(BUDGET)
        carrier.acquire(_ask("a", 900))

        time.sleep(1.1)

        assert carrier.acquire(_ask("b", 900)) is not None
        assert carrier.figures().leases == 1

    def test_release_after_expiry_frees_no_successor(self, make_carrier: MakeCarrier) -> None:
        carrier = make_carrier(ttl_s=1.0)
        carrier.open(BUDGET)
        carrier.acquire(_ask("a", 900))
        time.sleep(1.1)
        carrier.acquire(_ask("b", 900))

        assert carrier.release("a") is False

        assert carrier.figures().leased_bytes == 900
        assert carrier.release("b") is True

    def test_publishing_renews_and_tells_what_is_lost(self, make_carrier: MakeCarrier) -> None:
        carrier = make_carrier(ttl_s=2.0)
        carrier.open(BUDGET)
        carrier.acquire(_ask("a", 100))
        time.sleep(1.2)

        lost = carrier.publish(_node(), (HeldLease("a", 100), HeldLease("gone", 100)))
        time.sleep(1.2)

        assert lost == ("gone",)
        assert carrier.figures().leased_bytes == 100

    def test_lease_that_was_granted_elsewhere_is_taken(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("a", 900))

        assert carrier.publish(_node(), (HeldLease("local", 600, is_local=True),)) == ()

        assert carrier.figures().leased_bytes == 1500
        assert carrier.release("local") is True

    def test_process_that_tells_no_more_is_left_out(self, make_carrier: MakeCarrier) -> None:
        carrier = make_carrier(ttl_s=0.3)
        carrier.open(BUDGET)
        carrier.publish(_node(used=500, level=Level.CRITICAL), ())

        time.sleep(0.35)

        assert carrier.nodes() == ()
        assert carrier.figures().used_bytes == 0
        assert carrier.figures().usable_bytes == USABLE


class TestNodes:
    """What processes tell of themselves."""

    def test_nodes_come_back_as_they_were_told(self, carrier: Carrier) -> None:
        carrier.publish(_node("b", used=7, level=Level.WARNING), ())
        carrier.publish(_node("a: ü\n", used=1), ())
        carrier.acquire(_ask("1", 100, node="b"))

        first, second = carrier.nodes()

        assert (first.id, first.name, first.level) == ("a: ü\n", "name of a: ü\n", Level.NORMAL)
        assert (second.used_bytes, second.limit_bytes, second.headroom_bytes) == (7, 2000, 1500)
        assert (second.level, second.leased_bytes, second.interval_s) == (Level.WARNING, 100, 2.5)
        assert 0 <= second.age_s < 5

    def test_leaving_removes_leases_and_requests(self, carrier: Carrier) -> None:
        for node in ("a", "b"):
            carrier.publish(_node(node, used=50), ())
            carrier.acquire(_ask(f"held by {node}", 400, node=node))
        for node in ("a", "b"):
            carrier.acquire(_ask(f"wanted by {node}", 900, node=node, waits=True))

        carrier.leave("a")
        carrier.leave("a")

        found = carrier.figures()
        assert (found.leases, found.leased_bytes, found.used_bytes, found.waiting) == (1, 400, 400, 1)
        assert [node.id for node in carrier.nodes()] == ["b"]


class TestObservers:
    """A carrier that was not opened looks at a pool."""

    def test_pool_is_seen_without_joining(self, carrier: Carrier, make_carrier: MakeCarrier) -> None:
        carrier.publish(_node(used=300, level=Level.CRITICAL), ())
        carrier.acquire(_ask("a", 400))
        observer = make_carrier()

        assert observer.figures() == carrier.figures()
        assert [node.id for node in observer.nodes()] == ["n"]

    def test_pool_that_does_not_exist_has_no_budget(self, carrier: Carrier, make_carrier: MakeCarrier) -> None:
        observer = make_carrier(pool="other")

        assert observer.figures().budget_bytes == 0
        assert observer.nodes() == ()
        made = make_carrier(pool="other")
        made.open(BUDGET)
        assert made.acquire(_ask("a", 1)) is not None


class TestBudgets:
    """A pool has one budget."""

    def test_other_budget_is_refused_with_both(self, make_carrier: MakeCarrier) -> None:
        first, second = make_carrier(), make_carrier()
        first.open(BUDGET)
        first.publish(_node(), ())

        with pytest.raises(ConfigError, match=r"2000.*1000 bytes"):
            second.open(2 * BUDGET)

        first.leave("n")
        second.open(2 * BUDGET)
        assert second.acquire(_ask("a", 2 * USABLE)) is not None

    def test_lease_alone_keeps_the_budget(self, make_carrier: MakeCarrier) -> None:
        first, second = make_carrier(), make_carrier()
        first.open(BUDGET)
        first.acquire(_ask("a", 1))

        with pytest.raises(ConfigError):
            second.open(2 * BUDGET)

    def test_budget_of_terabytes_is_counted_exactly(self, make_carrier: MakeCarrier) -> None:
        carrier = make_carrier()
        carrier.open(2**52)
        size = 2**51 + 12_345

        carrier.acquire(_ask("a", size))
        carrier.acquire(_ask("b", 1))

        assert carrier.figures().leased_bytes == size + 1

    def test_carrier_connects_anew_after_it_was_closed(self, carrier: Carrier) -> None:
        carrier.acquire(_ask("a", 1))

        carrier.close()
        carrier.close()

        assert carrier.figures().leases == 1


class TestSameAnswers:
    """Both carriers are one state machine."""

    @pytest.mark.parametrize("seed", range(3))
    def test_sqlite_and_redis_answer_the_same(
        self, seed: int, make_pair: Callable[[], tuple[Carrier, Carrier]]
    ) -> None:
        draw = random.Random(seed)
        carriers = make_pair()
        for carrier in carriers:
            carrier.open(BUDGET)
        for _ in range(300):
            question = _draw_question(draw)

            assert _shown(question(carriers[0])) == _shown(question(carriers[1]))
            assert carriers[0].figures() == carriers[1].figures()


def _draw_question(draw: random.Random) -> Callable[[Carrier], object]:
    key, node, size = str(draw.randrange(12)), draw.choice("abc"), draw.choice((1, 50, 200, 700))
    told = _node(node, draw.choice((0, 100, 400)), draw.choice(list(Level)))
    held = tuple(HeldLease(str(each), size, is_local=draw.random() < 0.1) for each in draw.sample(range(12), 3))
    request = _ask(key, size, node=node, waits=draw.random() < 0.5)
    questions: list[Callable[[Carrier], object]] = [
        lambda carrier: carrier.acquire(request),
        lambda carrier: carrier.acquire(request),
        lambda carrier: carrier.release(key),
        lambda carrier: carrier.withdraw(key),
        lambda carrier: carrier.publish(told, held),
        lambda carrier: [(each.id, each.used_bytes, each.leased_bytes, each.level) for each in carrier.nodes()],
    ]
    if draw.random() < 0.05:
        return lambda carrier: carrier.leave(node)
    return draw.choice(questions)


def _shown(answer: object) -> object:
    return "a fence" if isinstance(answer, str) else answer
