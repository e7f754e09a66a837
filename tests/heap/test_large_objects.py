"""Large objects, which no length of a container and no number of objects shows, and what holds them."""

import array
import gc
import importlib.util
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memtools.heap import HeapGrowth, growth_between, heap_census, largest_containers, why_alive
from memtools.heap._largest import sized_largest
from memtools.monitor._report import sized_containers

MB = 10**6


class Shop:
    """What holds them all."""

    frames: Any = None


class Frame:
    def __init__(self, data: object) -> None:
        self.data = data


shop = Shop()


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    shop.__dict__.clear()


def growth_of(change: Callable[[], object]) -> list[HeapGrowth]:
    before = heap_census()
    change()
    return [growth for growth in growth_between(before, heap_census()) if growth.large]


def make_buffers() -> list[tuple[str, object]]:
    buffers: list[tuple[str, object]] = [
        ("bytes", bytes(8 * MB)),
        ("bytearray", bytearray(8 * MB)),
        ("str", "x" * (8 * MB)),
        ("array.array", array.array("d", bytes(8 * MB))),
    ]
    if importlib.util.find_spec("numpy") is not None:
        import numpy

        buffers.append(("numpy.ndarray", numpy.ones(MB)))
    return buffers


def test_list_of_few_large_objects_is_found() -> None:
    frames: dict[str, list[object]] = {}
    shop.frames = frames

    def change() -> None:
        for _ in range(5):
            for name, buffer in make_buffers():
                frames.setdefault(name, []).append(buffer)

    # One count for all types: each takes long in a process that has much to count.
    growths = {growth.type_name: growth for growth in growth_of(change)}

    assert growths.keys() == frames.keys()
    for name, grown in growths.items():
        answer = why_alive(grown, timeout=60)
        assert str(answer).startswith(f"{name} +")
        assert "/s in large objects (" in str(answer)
        assert str(answer.paths[0]).endswith(f" <- {__name__}.Shop.frames <- {__name__}.shop")
        assert answer.paths[0].holders[0].startswith("list[")
        assert sum(path.count for path in answer.paths) == 5
        assert grown.bytes_per_second > 0
        assert grown.size_bytes >= 40 * MB


def test_large_object_is_found_where_it_is_held() -> None:
    def change() -> None:
        shop.frames = [
            {"a": bytes(8 * MB)},  # not tracked before Python 3.14
            [("a", "x" * (8 * MB))],
            [Frame(bytearray(8 * MB))],
            deque([array.array("d", bytes(8 * MB))]),
        ]
        gc.collect()  # after it a dict or tuple of plain values is tracked no more

    ways = {grown.type_name: str(why_alive(grown, timeout=60).paths[0]) for grown in growth_of(change)}

    assert ways == {
        kind: f"{way} <- {__name__}.Shop.frames <- {__name__}.shop"
        for kind, way in (
            ("bytes", "dict[<str, 1 characters>] <- list[0]"),
            ("str", "tuple[1] <- list[0] <- list[1]"),
            ("bytearray", f"{__name__}.Frame.data <- list[0] <- list[2]"),
            ("array.array", "collections.deque[0] <- list[3]"),
        )
    }


def test_one_buffer_that_grows_is_found() -> None:
    shop.frames = [bytearray(100_000)]

    (grown,) = growth_of(lambda: shop.frames[0].extend(bytes(8 * MB)))

    assert grown.before <= grown.after
    assert "Shop.frames" in str(why_alive(grown, timeout=60))


def test_small_buffers_and_classes_of_the_program_are_left_out() -> None:
    class Buffer(bytearray):
        def __sizeof__(self) -> int:
            raise AssertionError

    shop.frames = []

    assert growth_of(lambda: shop.frames.extend([Buffer(8 * MB), *(bytes(60_000) for _ in range(100))])) == []


def test_large_objects_are_not_held_afterwards() -> None:
    class Owner: ...

    shop.frames = Owner()
    owner = weakref.ref(shop.frames)
    (grown,) = growth_of(lambda: setattr(shop.frames, "data", bytes(8 * MB)))
    why_alive(grown, timeout=60)

    shop.frames = None

    assert owner() is None


def test_largest_containers_include_few_large_items() -> None:
    data = [bytes(50 * MB) for _ in range(4)]
    shop.frames = [data[0], Frame(data[1]), (1, data[2]), data[3]]
    del data

    container, size = sized_largest(1)[0]

    assert container is shop.frames
    assert largest_containers(1)[0] is shop.frames
    assert size == pytest.approx(200 * MB, rel=0.3)


def test_report_names_the_container_of_few_large_items() -> None:
    shop.frames = [Frame(bytes(50 * MB)) for _ in range(4)]

    (container,) = sized_containers(1)

    assert (container.name, container.kind) == (f"{__name__}.Shop.frames", "list")
    assert container.held_bytes == pytest.approx(200 * MB, rel=0.3)
