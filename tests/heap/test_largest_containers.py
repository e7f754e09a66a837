"""The longest containers: their size, their holders, and the line where they are made."""

import sys
from collections import deque
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.heap import largest_containers
from memtools.heap._describe import source_line
from memtools.heap._largest import shallow_size
from memtools.heap._why_alive import paths_to

HOARD: list[str] = []


class Shop:
    closed: dict[int, str] = {}  # noqa: RUF012  # the leak that the tests find

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}


def test_largest_containers_are_sorted_by_length() -> None:
    kept = [deque(range(5_000_000)), list(range(4_000_000))]

    found = largest_containers(2)

    assert [container is expected for container, expected in zip(found, kept, strict=True)] == [True, True]


def test_largest_containers_leave_out_short_ones() -> None:
    assert all(len(found) >= 100_000 for found in largest_containers(1000, minimum=100_000))


def test_largest_containers_leave_out_interpreter_tables() -> None:
    assert not [found for found in largest_containers(10_000, minimum=10) if found is sys.modules]


@pytest.mark.parametrize(
    "container",
    [
        [f"{number:050}" for number in range(2_000)],
        deque(f"{number:050}" for number in range(2_000)),
        {f"{number:050}" for number in range(2_000)},
        {number: f"{number:050}" for number in range(2_000)},
    ],
    ids=lambda container: type(container).__name__,
)
def test_shallow_size_is_near_the_sum_of_sizes(container: Any) -> None:
    items = [*container.keys(), *container.values()] if isinstance(container, dict) else container
    truth = sys.getsizeof(container) + sum(map(sys.getsizeof, items))

    assert truth * 0.95 < shallow_size(container) < truth * 1.05


def test_shallow_size_of_other_objects_is_zero() -> None:
    assert shallow_size(b"x" * 1000) == 0


def test_shallow_size_calls_no_method_of_a_subclass() -> None:
    class Liar(list[int]):
        def __len__(self) -> int:
            raise AssertionError

        __iter__ = __sizeof__ = __reversed__ = __len__  # type: ignore[assignment]

    liar = Liar()
    list.extend(liar, range(1000))

    assert shallow_size(liar) > 8_000


def test_paths_are_returned_in_the_order_of_objects() -> None:
    shop = Shop()
    kept = {"shop": shop}
    HOARD.append("x")

    first, second, third = paths_to([HOARD, shop.seen, Shop.closed])
    HOARD.clear()

    assert kept
    assert first.holders == (f"{__name__}.HOARD",)
    assert second.holders[0] == f"{__name__}.Shop.seen"
    assert third.holders == (f"class {__name__}.Shop.closed",)


def test_paths_to_too_many_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 24"):
        paths_to([object()] * 25)


@pytest.mark.parametrize(
    ("holder", "line"),
    [
        (f"{__name__}.HOARD", 15),
        (f"class {__name__}.Shop.closed", 19),
        (f"{__name__}.Shop.seen", 22),
        (f"{__name__}.nothing", None),
        ("dict['shop']", None),
        ("no.such.module", None),
        ("sys.modules", None),
        ("", None),
    ],
)
def test_source_line_of_a_holder(holder: str, line: int | None) -> None:
    found = source_line(holder)

    assert found == ("" if line is None else f"{__file__}:{line}")
