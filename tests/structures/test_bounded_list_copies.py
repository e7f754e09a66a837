import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from memtools.structures import BoundedList


class Named(BoundedList[Any]):
    """A subclass with a constructor and an attribute of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(maxlen=4, keep=2)
        self.name = name


class Slotted(BoundedList[Any]):
    __slots__ = ("note",)

    note: list[str]


class Restoring(BoundedList[Any]):
    """A subclass that brings and takes its state itself."""

    def __getstate__(self) -> object:
        return {"from": "getstate"}

    def __setstate__(self, state: object) -> None:
        self.state = state


class Reduced(BoundedList[Any]):
    """A subclass that knows better how it is made again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Named, ("made again",)


def by_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda original: pickle.loads(pickle.dumps(original, protocol))


def by_method(original: Any) -> Any:
    return original.copy()


WAYS = [by_method, copy.copy, copy.deepcopy, *map(by_pickle, range(pickle.HIGHEST_PROTOCOL + 1))]
BOUNDS: list[dict[str, Any]] = [
    {"maxlen": 3},
    {"maxlen": 4, "keep": 2},
    {"maxlen": 5000},
    {"max_bytes": 1000},
    {"maxlen": 3, "keep": 1, "max_bytes": "1 KiB", "sizeof": len},
]

every_way = pytest.mark.parametrize("way", WAYS)


def bounds_of(recent: BoundedList[Any]) -> tuple[object, ...]:
    return recent.maxlen, recent.keep, recent.max_bytes


@every_way
@pytest.mark.parametrize("bounds", BOUNDS)
def test_copies_keep_class_items_and_bounds(way: Callable[[Any], Any], bounds: dict[str, Any]) -> None:
    original = BoundedList(["a", "bb", "ccc"], **bounds)

    twin = way(original)

    assert twin == original
    assert twin is not original
    assert type(twin) is type(original)
    assert bounds_of(twin) == bounds_of(original)
    assert twin.statistics() == original.statistics()
    twin.extend(["d"] * 6000)
    assert len(twin) < 6000
    assert len(original) == 3


@every_way
def test_copies_of_a_full_list_lose_nothing_on_the_way(way: Callable[[Any], Any]) -> None:
    original = BoundedList(range(1000), 1000, keep=10)

    twin = way(original)

    assert twin == list(range(1000))
    assert twin.statistics().evicted == 0


@every_way
def test_subclass_keeps_what_it_added_without_its_constructor(way: Callable[[Any], Any]) -> None:
    original = Named("ticks")
    original.extend([1, 2, 3])

    twin = way(original)

    assert (type(twin), twin, twin.name, bounds_of(twin)) == (Named, [1, 2, 3], "ticks", (4, 2, None))


@every_way
@pytest.mark.parametrize("bounds", [{"maxlen": 3}, {"max_bytes": 1000}])
def test_slots_of_a_subclass_are_copied(way: Callable[[Any], Any], bounds: dict[str, Any]) -> None:
    original = Slotted([1, 2], **bounds)
    original.note = ["n"]

    twin = way(original)

    assert twin.note == ["n"]
    assert (twin.note is original.note) == (way in (by_method, copy.copy))


@every_way
def test_state_of_a_subclass_is_its_own_business(way: Callable[[Any], Any]) -> None:
    assert way(Restoring([1], 2)).state == {"from": "getstate"}


@pytest.mark.parametrize("way", WAYS[3:])
def test_subclass_may_say_itself_how_it_is_pickled(way: Callable[[Any], Any]) -> None:
    assert way(Reduced([1], 2)).name == "made again"


@pytest.mark.parametrize("way", WAYS[2:])
def test_list_that_holds_itself_is_copied_as_one(way: Callable[[Any], Any]) -> None:
    original: BoundedList[Any] = BoundedList([1], 3)
    original.append(original)

    twin = way(original)

    assert twin[1] is twin
    assert twin[0] == 1
    assert len(twin) == 2


def test_deep_copies_have_items_of_their_own() -> None:
    original = BoundedList([[1]], 3)

    shallow, deep = copy.copy(original), copy.deepcopy(original)

    assert shallow[0] is original[0]
    assert deep[0] is not original[0]


class Service:
    """Owns what cannot be copied."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __reduce__(self) -> Any:
        raise TypeError("a service is not copied")

    def archive(self, gone: list[Any]) -> None:
        self.told += gone


@pytest.mark.parametrize("way", WAYS[:3])
def test_copies_in_the_process_share_the_hook(way: Callable[[Any], Any]) -> None:
    service = Service()
    original = BoundedList([1], 1, on_evict=service.archive)

    way(original).append(2)

    assert service.told == [1]


@pytest.mark.parametrize("way", WAYS[3:])
def test_pickles_leave_the_hook_behind(way: Callable[[Any], Any]) -> None:
    service = Service()
    original = BoundedList([1], 1, on_evict=service.archive)

    twin = way(original)
    twin.append(2)

    assert twin == [2]
    assert service.told == []


def test_copy_is_not_told_as_an_eviction() -> None:
    told: list[Any] = []
    grown: list[list[int]] = [[], []]
    original = BoundedList(grown, max_bytes=10, sizeof=len, on_evict=told.extend)
    for item in grown:
        item += range(100)

    twin = original.copy()

    assert twin == original
    assert told == []
