"""What the census counts, and what it says grew."""

import asyncio
import gc
import weakref
from collections import Counter, OrderedDict, defaultdict, deque

import pytest

from memtools.errors import ConfigError
from memtools.heap import Census, HeapGrowth, count_in_slices, growth_between, heap_census


@pytest.mark.parametrize(
    "container",
    [
        {number: [number] for number in range(500)},
        {number: number for number in range(500)},  # not tracked by the collector before 3.14
        [[number] for number in range(500)],
        set(range(500)),
        deque(range(500)),
        OrderedDict.fromkeys(range(500)),
        defaultdict(int, dict.fromkeys(range(500), 1)),
        Counter(range(500)),
    ],
    ids=lambda container: type(container).__name__,
)
def test_every_container_that_can_grow_is_counted(container: object) -> None:
    holder = [container]

    counted = heap_census()

    assert counted.containers[id(holder[0])][1] == 500
    assert counted.names[counted.containers[id(container)][0]].endswith(type(container).__name__)


def test_short_containers_are_left_out() -> None:
    short = [[number] for number in range(63)]
    long = [[number] for number in range(64)]

    counted = heap_census()

    assert id(short) not in counted.containers
    assert id(long) in counted.containers


def test_types_are_counted_by_number() -> None:
    class Order: ...

    kept = [Order() for _ in range(321)]

    counted = heap_census()

    assert counted.types[id(Order)] == len(kept)
    assert "Order" in counted.names[id(Order)]


def test_counting_in_slices_gives_the_same_as_at_once() -> None:
    kept = [{"a": [number]} for number in range(120_000)]

    steps = list(count_in_slices())

    assert len(steps) > 3
    assert all(step is None for step in steps[:-1])
    assert isinstance(steps[-1], Census)
    assert steps[-1].types[id(dict)] >= len(kept)


def test_what_grows_is_named_with_its_rate() -> None:
    rows: list[list[int]] = [[number] for number in range(100)]
    first = heap_census()

    rows.extend([number] for number in range(400))
    (found,) = [one for one in growth_between(first, heap_census()) if one.address == id(rows)]

    assert (found.before, found.after) == (100, 500)
    assert found.per_second > 0
    assert str(found).startswith("list +")


def test_a_container_that_shrank_in_between_is_no_leak() -> None:
    rows = [[number] for number in range(1_000)]
    first = heap_census()
    del rows[500:]
    second = heap_census()
    rows.extend([number] for number in range(2_000))

    found = growth_between(first, second, heap_census())

    assert id(rows) not in {one.address for one in found}


def test_a_container_that_is_new_grows_from_nothing() -> None:
    first = heap_census()
    rows = [[number] for number in range(1_000)]

    found = growth_between(first, heap_census())

    assert [one.before for one in found if one.address == id(rows)] == [0]


def test_its_own_counts_do_not_grow() -> None:
    counts = [heap_census() for _ in range(4)]

    found = growth_between(*counts)

    assert not [one for one in found if "memtools.heap" in one.type_name]
    assert not [one for one in found if one.address in {id(count.types) for count in counts}]


def test_a_type_without_a_container_is_found_by_its_number() -> None:
    class Link:
        def __init__(self, before: "Link | None") -> None:
            self.before = before

    last: Link | None = None
    first = heap_census()
    for _ in range(200):
        last = Link(last)

    found = growth_between(first, heap_census())

    assert last is not None
    assert [one.after for one in found if one.type_name.endswith("Link")] == [200]


def test_growth_needs_two_counts() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        growth_between(heap_census())


def test_an_address_that_was_used_again_is_no_growth() -> None:
    before = Census({1: (10, 100)}, {}, {10: "list", 20: "dict"}, 0, 0.0)
    after = Census({1: (20, 500)}, {}, {10: "list", 20: "dict"}, 0, 1.0)

    assert growth_between(before, after) == ()


def test_rates_are_per_second() -> None:
    before = Census({1: (10, 100)}, {10: 5}, {10: "shop.Order"}, 0, 0.0)
    after = Census({1: (10, 600)}, {10: 105}, {10: "shop.Order"}, 0, 10.0)

    assert growth_between(before, after) == (
        HeapGrowth("shop.Order", 100, 600, 50.0, 1),
        HeapGrowth("shop.Order", 5, 105, 10.0),
    )


async def test_a_count_in_slices_lets_the_loop_have_its_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in count_in_slices():
        await asyncio.sleep(0)
    task.cancel()

    assert turns > 0


def test_the_inside_of_a_weak_set_is_nobodys_leak() -> None:
    from memtools.heap import why_alive

    class Thing: ...

    things = [Thing() for _ in range(100)]
    weak = weakref.WeakSet(things)
    first = heap_census()
    things.extend(Thing() for _ in range(300))
    weak.update(things)

    inside = [one for one in growth_between(first, heap_census()) if one.address == id(weak.data)]

    assert [why_alive(one).ways for one in inside] == [()]


def test_a_census_reads_as_a_table() -> None:
    text = str(heap_census())

    assert "objects" in text.splitlines()[0]
    assert len(text.splitlines()) == 11
    gc.collect()
