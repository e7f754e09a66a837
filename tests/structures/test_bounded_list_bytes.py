"""`BoundedList(max_bytes=...)`."""

import math
from abc import ABCMeta
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.structures import BoundedList


class Item:
    """An item with a given size, which counts how often its size was taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0


def size_of(item: Item) -> int:
    item.calls += 1
    return item.size


def sizes(items: list[Item]) -> list[int]:
    return [item.size for item in items]


def make(*given: int, max_bytes: int = 100, **choices: Any) -> BoundedList[Item]:
    return BoundedList(map(Item, given), max_bytes=max_bytes, sizeof=size_of, **choices)


def test_oldest_items_are_evicted_until_the_rest_fits() -> None:
    items = make(40, 30, 20)

    items.append(Item(60))

    assert sizes(items) == [20, 60]
    assert items.statistics().size_bytes == 80
    assert items.statistics().evicted == 2


def test_item_larger_than_the_bound_cannot_stay() -> None:
    items = make(40, 30)

    items.append(Item(101))

    assert items == []
    assert items.statistics().evicted == 3


def test_sizes_are_shallow_by_default() -> None:
    texts = BoundedList(["x" * 1000 for _ in range(20)], max_bytes="10 KiB")

    assert len(texts) == 9
    assert texts.max_bytes == 10_240


def test_number_and_bytes_bound_together() -> None:
    items = make(1, 1, 1, 1, maxlen=4, keep=2)

    items.append(Item(1))
    assert sizes(items) == [1, 1]

    items.append(Item(99))
    assert sizes(items) == [1, 99]
    items.append(Item(100))
    assert sizes(items) == [100]


def test_hook_gets_items_evicted_by_bytes() -> None:
    reported: list[list[int]] = []
    items = make(40, 30, 20, on_evict=lambda evicted: reported.append(sizes(evicted)))

    items.append(Item(60))
    items.extend(map(Item, [30, 80, 90]))

    assert reported[0] == [40, 30]
    assert [size for evicted in reported for size in evicted] == [40, 30, 20, 60, 30, 80]
    assert sizes(items) == [90]


def test_sizeof_is_called_once_per_item() -> None:
    items = make(10, 20, 30)
    first = list(items)

    for item in first:
        item.size = 99
    items.append(Item(5))
    items.sort(key=lambda item: item.calls)
    items.reverse()
    items.copy()

    assert [item.calls for item in first] == [1, 1, 1]
    assert items.statistics().size_bytes == 65


@pytest.mark.parametrize(
    ("act", "left"),
    [
        (lambda items: items.pop(), [10, 20, 30]),
        (lambda items: items.pop(0), [20, 30, 40]),
        (lambda items: items.pop(-2), [10, 20, 40]),
        (lambda items: items.remove(items[1]), [10, 30, 40]),
        (lambda items: items.clear(), []),
        (lambda items: items.reverse(), [40, 30, 20, 10]),
        (lambda items: items.sort(key=lambda item: -item.size), [40, 30, 20, 10]),
        (lambda items: items.__delitem__(slice(None, None, 2)), [20, 40]),
        (lambda items: items.__delitem__(-1), [10, 20, 30]),
        (lambda items: items.__setitem__(0, Item(1)), [1, 20, 30, 40]),
        (lambda items: items.__setitem__(-1, Item(50)), [20, 30, 50]),
        (lambda items: items.__setitem__(slice(1, 3), map(Item, (1, 2, 3))), [10, 1, 2, 3, 40]),
        (lambda items: items.__setitem__(slice(None, None, 2), (Item(1), Item(2))), [1, 20, 2, 40]),
        (lambda items: items.insert(1, Item(5)), [5, 20, 30, 40]),
        (lambda items: items.insert(0, Item(5)), [10, 20, 30, 40]),
        (lambda items: items.insert(4, Item(5)), [20, 30, 40, 5]),
        (lambda items: items.extend(map(Item, (1, 2))), [20, 30, 40, 1, 2]),
        (lambda items: items.extend(items), [10, 20, 30, 40]),
        (lambda items: items.extend(reversed(items)), [40, 30, 20, 10]),
        (lambda items: items.__iadd__([Item(70)]), [70]),
        (lambda items: items.__imul__(3), [10, 20, 30, 40]),
        (lambda items: items.__imul__(10**18), [10, 20, 30, 40]),
        (lambda items: items.__imul__(0), []),
    ],
)
def test_size_bytes_is_right_after_every_mutator(act: Any, left: list[int]) -> None:
    items = make(10, 20, 30, 40)

    act(items)

    assert sizes(items) == left
    assert items.statistics().size_bytes == sum(sizes(items)) <= 100
    items.append(Item(100))  # the sizes are in the order of the items: only the new item is left
    assert sizes(items) == [100]


def test_failed_changes_change_nothing() -> None:
    items = make(10, 20)

    for fail, kind in (
        (lambda: items.pop(5), IndexError),
        (lambda: items.remove(Item(1)), ValueError),
        (lambda: items.__setitem__(5, Item(1)), IndexError),
        (lambda: items.__setitem__(slice(None, None, 2), [Item(1), Item(1)]), ValueError),
        (lambda: items.__delitem__(2), IndexError),
        (lambda: items.sort(), TypeError),
    ):
        with pytest.raises(kind):
            fail()

    assert sorted(sizes(items)) == [10, 20]
    assert items.statistics().size_bytes == 30


def test_invalid_size_is_refused_before_the_item_is_added() -> None:
    answers = iter([5, -1, "many"])
    numbers: BoundedList[int] = BoundedList([1], max_bytes=10, sizeof=lambda item: next(answers))

    for refused in ("-1", "'many'"):
        with pytest.raises(ConfigError, match=refused):
            numbers.append(2)

    assert numbers == [1]
    assert numbers.statistics().size_bytes == 5


def test_sizeof_that_fails_midway_leaves_the_items_before() -> None:
    def fussy(item: int) -> int:
        return 10 // item

    numbers: BoundedList[int] = BoundedList(max_bytes=100, sizeof=fussy)

    with pytest.raises(ZeroDivisionError):
        numbers.extend([5, 2, 0, 1])

    assert numbers == [5, 2]
    assert numbers.statistics().size_bytes == 7


def test_generator_has_at_most_bounds_and_one_item_alive() -> None:
    alive = most = 0

    class Heavy:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    heavy: BoundedList[Heavy] = BoundedList(max_bytes=1000, sizeof=lambda item: 100)

    heavy.extend(Heavy() for _ in range(1000))

    assert len(heavy) == 10
    assert most <= 2 * 10 + 2
    heavy.clear()


def test_bypassing_items_get_a_size_at_the_next_change_or_check() -> None:
    items = make(10, 20)

    list.append(items, Item(90))
    assert items.check() == 2
    assert sizes(items) == [90]

    list.append(items, Item(5))
    items.append(Item(6))
    assert sizes(items) == [5, 6]
    assert items.statistics().size_bytes == 11


def test_list_with_bypassed_bounds_can_be_extended_by_itself() -> None:
    items = make(60)
    list.extend(items, [Item(70), Item(80)])

    items.extend(items)

    assert sizes(items) == [80]


def test_overflow_by_number_within_an_iterator_leaves_keep_items() -> None:
    items = make(maxlen=10, keep=3)

    items.extend(map(Item, range(15)))

    assert sizes(items) == [12, 13, 14]


def test_check_takes_the_sizes_anew() -> None:
    items = make(10, 20)
    items[0].size = 90

    assert items.check() == 1
    assert sizes(items) == [20]


def test_object_in_two_places_counts_twice() -> None:
    item = Item(30)

    items: BoundedList[Item] = BoundedList([item, item], max_bytes=100, sizeof=size_of)
    items.sort(key=id)

    assert items.statistics().size_bytes == 60


def test_sizes_stay_in_step_if_a_finaliser_adds_items() -> None:
    items: BoundedList[Item] = BoundedList(max_bytes=100, sizeof=size_of)

    class Echo(Item):
        def __del__(self) -> None:
            if self.size == 20:
                items.append(Item(3))

    changes: list[Any] = [
        lambda: items.clear(),
        lambda: items.__delitem__(0),
        lambda: items.__setitem__(0, Item(1)),
        lambda: items.__setitem__(-1, Item(1)),
        lambda: items.__setitem__(slice(None), []),
        lambda: items.__imul__(0),
        lambda: items.append(Item(99)),
        lambda: items.__init__(max_bytes=100, sizeof=size_of),  # type: ignore[misc]
    ]
    for change in changes:
        items.clear()
        items.append(Echo(20))
        change()
        assert items.statistics().size_bytes == sum(sizes(items))
        assert 3 in sizes(items)


def test_sizes_stay_in_step_if_a_sort_key_adds_items() -> None:
    items = make(10, 20, 30)

    def meddle(item: Item) -> int:
        items.append(Item(7))
        return item.size

    with pytest.raises(ValueError, match="modified during sort"):
        items.sort(key=meddle)

    assert items.statistics().size_bytes == sum(sizes(items))


def test_subclass_bounded_by_bytes_keeps_its_class_and_overrides() -> None:
    class History(BoundedList[Item]):
        __slots__ = ("posted",)

        def __init__(self) -> None:
            self.posted = 0
            super().__init__(max_bytes=100, sizeof=size_of)

        def append(self, item: Item, /) -> None:
            super().append(item)
            self.posted += 1

    first, second = History(), History()
    for size in (50, 40, 30):
        first.append(Item(size))

    assert isinstance(first, History)
    assert type(first) is type(second)
    assert type(first).__name__ == "History"
    assert sizes(first) == [40, 30]
    assert first.posted == 3
    assert first.statistics().size_bytes == 70


def test_init_subclass_does_not_run_for_max_bytes() -> None:
    tables: dict[str, type] = {}

    class Stored(BoundedList[bytes]):
        def __init_subclass__(cls, *, table: str) -> None:
            assert table not in tables
            tables[table] = cls

    class Bodies(Stored, table="bodies"):
        pass

    bodies = Bodies([b"1", b"2"], max_bytes="1 KiB")
    bodies.append(b"3")

    assert bodies == [b"1", b"2", b"3"]
    assert isinstance(bodies, Bodies)
    assert Stored([b"1"], max_bytes="1 KiB") == [b"1"]
    assert tables == {"bodies": Bodies}


def test_metaclass_does_not_run_for_max_bytes() -> None:
    made: list[str] = []

    class Sealed(type):
        def __new__(mcs, name: str, bases: tuple[type, ...], names: dict[str, Any], *, table: str) -> Any:
            made.append(table)
            return super().__new__(mcs, name, bases, names)

        def __init__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any], *, table: str) -> None:
            super().__init__(name, bases, names)

        def __setattr__(cls, name: str, value: object) -> None:
            raise AttributeError(name)

    class Bodies(BoundedList[bytes], metaclass=Sealed, table="bodies"):
        pass

    bodies = Bodies([b"1"], max_bytes="1 KiB")

    assert bodies == [b"1"]
    assert isinstance(bodies, Bodies)
    assert type(type(bodies)) is Sealed
    assert made == ["bodies"]


def test_abstract_class_with_max_bytes_is_told_apart() -> None:
    class Kept(BoundedList[Item], metaclass=ABCMeta):
        pass

    by_bytes, by_length = Kept(max_bytes=100), Kept(maxlen=3)

    assert isinstance(by_length, Kept)
    assert isinstance(by_bytes, Kept)
    assert isinstance(by_bytes, type(by_bytes))
    assert not isinstance(by_length, type(by_bytes))


def test_second_init_adds_and_removes_max_bytes() -> None:
    items: BoundedList[Item] = BoundedList(maxlen=3)
    plain = type(items)

    items.__init__([Item(60), Item(50)], max_bytes=100, sizeof=size_of)  # type: ignore[misc]
    assert sizes(items) == [50]

    items.__init__([Item(60), Item(50)], 3)  # type: ignore[misc]
    assert sizes(items) == [60, 50]
    assert type(items) is plain


def test_max_bytes_of_zero_keeps_items_of_size_zero() -> None:
    items = make(0, 1, 0, 0, max_bytes=0)

    assert sizes(items) == [0, 0]
    items *= 2
    assert sizes(items) == [0] * 4
    assert items.shrink(0, math.inf) == 0  # type: ignore[arg-type]
