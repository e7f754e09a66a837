"""The census of the heap, and the growth between two of them."""

import asyncio
import gc
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.heap import Census, HeapGrowth, growth_between, heap_census, why_alive
from memtools.heap._census import count_in_slices


@pytest.mark.parametrize(
    "container",
    [
        {number: [number] for number in range(500)},
        {number: number for number in range(500)},  # not tracked by the garbage collector before Python 3.14
        [[number] for number in range(500)],
        set(range(500)),
        deque(range(500)),
        OrderedDict.fromkeys(range(500)),
        defaultdict(int, dict.fromkeys(range(500), 1)),
        Counter(range(500)),
    ],
    ids=lambda container: type(container).__name__,
)
def test_census_counts_every_growing_container(container: object) -> None:
    holder = [container]

    counted = heap_census()

    assert counted.containers[id(holder[0])][1] == 500
    assert counted.names[counted.containers[id(container)][0]].endswith(type(container).__name__)


def test_census_leaves_out_short_containers() -> None:
    short = [[number] for number in range(63)]
    long = [[number] for number in range(64)]

    counted = heap_census()

    assert id(short) not in counted.containers
    assert id(long) in counted.containers


def test_census_counts_objects_by_type() -> None:
    class Order: ...

    kept = [Order() for _ in range(321)]

    counted = heap_census()

    assert counted.types[id(Order)] == len(kept)
    assert "Order" in counted.names[id(Order)]


def test_census_in_slices_gives_the_same_result() -> None:
    kept = [{"a": [number]} for number in range(120_000)]

    steps = list(count_in_slices())

    assert len(steps) > 3
    assert all(step is None for step in steps[:-1])
    assert isinstance(steps[-1], Census)
    assert steps[-1].types[id(dict)] >= len(kept)


def test_growth_has_lengths_and_rate() -> None:
    rows: list[list[int]] = [[number] for number in range(100)]
    first = heap_census()

    rows.extend([number] for number in range(400))
    (found,) = [growth for growth in growth_between(first, heap_census()) if growth.address == id(rows)]

    assert (found.before, found.after) == (100, 500)
    assert found.per_second > 0
    assert str(found).startswith("list +")


def test_growth_leaves_out_a_container_that_shrank_in_between() -> None:
    rows = [[number] for number in range(1_000)]
    first = heap_census()
    del rows[500:]
    second = heap_census()
    rows.extend([number] for number in range(2_000))

    found = growth_between(first, second, heap_census())

    assert id(rows) not in {growth.address for growth in found}


def test_growth_of_a_new_container_starts_at_zero() -> None:
    first = heap_census()
    rows = [[number] for number in range(1_000)]

    found = growth_between(first, heap_census())

    assert [growth.before for growth in found if growth.address == id(rows)] == [0]


def test_growth_leaves_out_earlier_censuses() -> None:
    counts = [heap_census() for _ in range(4)]

    found = growth_between(*counts)

    assert not [growth for growth in found if "memtools.heap" in growth.type_name]
    assert not [growth for growth in found if growth.address in {id(count.types) for count in counts}]


def test_growth_of_a_type_without_container_is_found() -> None:
    class Link:
        def __init__(self, before: "Link | None") -> None:
            self.before = before

    last: Link | None = None
    first = heap_census()
    for _ in range(200):
        last = Link(last)

    found = growth_between(first, heap_census())

    assert last is not None
    assert [growth.after for growth in found if growth.type_name.endswith("Link")] == [200]


def test_growth_of_a_single_census_is_refused() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        growth_between(heap_census())


def test_growth_leaves_out_a_reused_address() -> None:
    before = Census({1: (10, 100)}, {}, {10: "list", 20: "dict"}, 0, 0.0)
    after = Census({1: (20, 500)}, {}, {10: "list", 20: "dict"}, 0, 1.0)

    assert growth_between(before, after) == ()


def test_growth_rate_is_per_second() -> None:
    before = Census({1: (10, 100)}, {10: 5}, {10: "shop.Order"}, 0, 0.0)
    after = Census({1: (10, 600)}, {10: 105}, {10: "shop.Order"}, 0, 10.0)

    assert growth_between(before, after) == (
        HeapGrowth("shop.Order", 100, 600, 50.0, 1),
        HeapGrowth("shop.Order", 5, 105, 10.0),
    )


async def test_census_in_slices_lets_other_tasks_run() -> None:
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


def test_storage_of_a_weak_set_is_not_reported() -> None:
    class Order: ...

    orders = [Order() for _ in range(100)]
    weak = weakref.WeakSet(orders)
    first = heap_census()
    orders.extend(Order() for _ in range(300))
    weak.update(orders)

    storage = [found for found in growth_between(first, heap_census()) if found.address == id(weak.data)]

    assert [why_alive(found).paths for found in storage] == [()]


def test_census_as_text_is_a_table() -> None:
    text = str(heap_census())

    assert "objects" in text.splitlines()[0]
    assert len(text.splitlines()) == 11
    gc.collect()


class _Listener: ...


def test_kept_weak_references_are_reported() -> None:
    alive = [_Listener()]
    callbacks: list[Any] = [None, lambda _: None]
    # Each kind at once: most of the time goes into the censuses.
    kinds = [(callback, is_kept) for callback in callbacks for is_kept in (False, True)]
    lists: list[list[Any]] = [[] for _ in kinds]
    dicts: list[dict[int, Any]] = [{} for _ in kinds]

    def add(count: int) -> None:
        for _ in range(count):
            for (callback, is_kept), to_list, to_dict in zip(kinds, lists, dicts, strict=True):
                to_list.append(weakref.ref(alive[0] if is_kept else _Listener(), callback))
                to_dict[len(to_dict)] = weakref.ref(alive[0] if is_kept else _Listener(), callback)

    add(100)
    first = heap_census()
    add(300)
    grown = {found.address: found for found in growth_between(first, heap_census(), limit=100)}

    for container in (*lists, *dicts):
        assert why_alive(grown[id(container)]).alive == 400


@pytest.mark.parametrize("kind", [weakref.WeakValueDictionary, weakref.WeakKeyDictionary])
def test_storage_of_a_weak_mapping_is_not_reported(kind: Any) -> None:
    listeners = [_Listener() for _ in range(200)]
    mapping = kind()
    first = heap_census()
    for number, listener in enumerate(listeners):
        key, value = (number, listener) if kind is weakref.WeakValueDictionary else (listener, number)
        mapping[key] = value

    storage = [found for found in growth_between(first, heap_census()) if found.address == id(mapping.data)]

    assert [why_alive(found).paths for found in storage] == [()]
