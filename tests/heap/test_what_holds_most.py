"""The longest containers, what they weigh, who holds them, and the line where they are made."""

import sys
from collections import deque
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.heap import largest_containers, paths_to, shallow_size, source_line

HOARD: list[str] = []


class Shop:
    closed: dict[int, str] = {}  # noqa: RUF012  # what is looked for

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}


def test_the_longest_come_first() -> None:
    kept = [deque(range(5_000_000)), list(range(4_000_000))]

    found = largest_containers(2)

    assert [one is other for one, other in zip(found, kept, strict=True)] == [True, True]


def test_short_ones_are_left_out() -> None:
    assert all(len(one) >= 100_000 for one in largest_containers(1000, least=100_000))


def test_the_tables_of_the_interpreter_are_nobodys() -> None:
    assert not [one for one in largest_containers(10_000, least=10) if one is sys.modules]


@pytest.mark.parametrize(
    "container",
    [
        [f"{number:050}" for number in range(2_000)],
        deque(f"{number:050}" for number in range(2_000)),
        {f"{number:050}" for number in range(2_000)},
        {number: f"{number:050}" for number in range(2_000)},
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_weight_is_near_the_sum(container: Any) -> None:
    items = [*container.keys(), *container.values()] if isinstance(container, dict) else container
    truth = sys.getsizeof(container) + sum(map(sys.getsizeof, items))

    assert truth * 0.95 < shallow_size(container) < truth * 1.05


def test_what_is_no_container_weighs_nothing_here() -> None:
    assert shallow_size(b"x" * 1000) == 0


def test_a_subclass_is_weighed_without_its_methods() -> None:
    class Liar(list[int]):
        def __len__(self) -> int:
            raise AssertionError

        __iter__ = __sizeof__ = __reversed__ = __len__  # type: ignore[assignment]

    liar = Liar()
    list.extend(liar, range(1000))

    assert shallow_size(liar) > 8_000


def test_each_of_several_things_is_answered_in_their_order() -> None:
    shop = Shop()
    kept = {"shop": shop}
    HOARD.append("x")

    first, second, third = paths_to([HOARD, shop.seen, Shop.closed])
    HOARD.clear()

    assert kept
    assert first.holders == (f"{__name__}.HOARD",)
    assert second.holders[0] == f"{__name__}.Shop.seen"
    assert third.holders == (f"class {__name__}.Shop.closed",)


def test_too_many_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 24"):
        paths_to([object()] * 25)


@pytest.mark.parametrize(
    ("holder", "line"),
    [
        (f"{__name__}.HOARD", 12),
        (f"class {__name__}.Shop.closed", 16),
        (f"{__name__}.Shop.seen", 19),
        (f"{__name__}.nothing", None),
        ("dict['shop']", None),
        ("no.such.module", None),
        ("sys.modules", None),
        ("", None),
    ],
)
def test_the_line_where_a_holder_is_made(holder: str, line: int | None) -> None:
    found = source_line(holder)

    assert found == ("" if line is None else f"{__file__}:{line}")
