"""Copies and pickles of `BoundedList`."""

import copy
import dataclasses
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
    """A subclass that defines `__getstate__` and `__setstate__`."""

    def __getstate__(self) -> object:
        return {"from": "getstate"}

    def __setstate__(self, state: object) -> None:
        self.state = state


class Reduced(BoundedList[Any]):
    """A subclass that defines `__reduce__`."""

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

    copied = way(original)

    assert copied == original
    assert copied is not original
    assert type(copied) is type(original)
    assert bounds_of(copied) == bounds_of(original)
    assert copied.statistics() == original.statistics()
    copied.extend(["d"] * 6000)
    assert len(copied) < 6000
    assert len(original) == 3


@every_way
def test_copies_of_a_full_list_have_all_items(way: Callable[[Any], Any]) -> None:
    original = BoundedList(range(1000), 1000, keep=10)

    copied = way(original)

    assert copied == list(range(1000))
    assert copied.statistics().evicted == 0


@every_way
def test_subclass_attributes_are_copied_without_its_init(way: Callable[[Any], Any]) -> None:
    original = Named("ticks")
    original.extend([1, 2, 3])

    copied = way(original)

    assert (type(copied), copied, copied.name, bounds_of(copied)) == (Named, [1, 2, 3], "ticks", (4, 2, None))


@every_way
@pytest.mark.parametrize("bounds", [{"maxlen": 3}, {"max_bytes": 1000}])
def test_slots_of_a_subclass_are_copied(way: Callable[[Any], Any], bounds: dict[str, Any]) -> None:
    original = Slotted([1, 2], **bounds)
    original.note = ["n"]

    copied = way(original)

    assert copied.note == ["n"]
    assert (copied.note is original.note) == (way in (by_method, copy.copy))


@every_way
def test_subclass_may_define_its_state(way: Callable[[Any], Any]) -> None:
    assert way(Restoring([1], 2)).state == {"from": "getstate"}


@pytest.mark.parametrize("way", WAYS[3:])
def test_subclass_may_define_reduce(way: Callable[[Any], Any]) -> None:
    assert way(Reduced([1], 2)).name == "made again"


@pytest.mark.parametrize("way", WAYS[2:])
def test_deepcopy_of_a_list_that_holds_itself(way: Callable[[Any], Any]) -> None:
    original: BoundedList[Any] = BoundedList([1], 3)
    original.append(original)

    copied = way(original)

    assert copied[1] is copied
    assert copied[0] == 1
    assert len(copied) == 2


def test_deepcopy_copies_the_items() -> None:
    original = BoundedList([[1]], 3)

    shallow, deep = copy.copy(original), copy.deepcopy(original)

    assert shallow[0] is original[0]
    assert deep[0] is not original[0]


class Service:
    """A subclass whose attribute cannot be copied."""

    def __init__(self) -> None:
        self.reported: list[Any] = []

    def __reduce__(self) -> Any:
        raise TypeError("a service is not copied")

    def archive(self, evicted: list[Any]) -> None:
        self.reported += evicted


@pytest.mark.parametrize("way", WAYS[:3])
def test_copies_share_the_hook(way: Callable[[Any], Any]) -> None:
    service = Service()
    original = BoundedList([1], 1, on_evict=service.archive)

    way(original).append(2)

    assert service.reported == [1]


@pytest.mark.parametrize("way", WAYS[3:])
def test_pickles_leave_out_the_hook(way: Callable[[Any], Any]) -> None:
    service = Service()
    original = BoundedList([1], 1, on_evict=service.archive)

    copied = way(original)
    copied.append(2)

    assert copied == [2]
    assert service.reported == []


@dataclasses.dataclass
class State:
    """An object that holds a list, as those that libraries take apart."""

    recent: BoundedList[Any]


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """Rebuild a container by its type, as tree libraries do."""
    return type(tree)([map_tree(function, item) for item in tree]) if isinstance(tree, list) else function(tree)


REBUILDS: list[Callable[[BoundedList[Any]], Any]] = [
    lambda recent: dataclasses.asdict(State(recent))["recent"],
    lambda recent: dataclasses.astuple(State(recent))[0],
    lambda recent: map_tree(lambda item: item, recent),
    lambda recent: type(recent)(item for item in recent),
    lambda recent: type(recent)(recent),
]


@pytest.mark.parametrize("rebuild", REBUILDS)
@pytest.mark.parametrize("count", [0, 3, 5000])
@pytest.mark.parametrize("bounds", [{"maxlen": 5000}, {"max_bytes": "10 MiB"}])
def test_rebuilt_by_its_type_has_all_items(
    rebuild: Callable[[BoundedList[Any]], Any], count: int, bounds: dict[str, Any]
) -> None:
    rebuilt = rebuild(BoundedList(range(count), **bounds))

    assert rebuilt == list(range(count))
    assert isinstance(rebuilt, BoundedList)


def test_rebuilt_by_its_type_is_still_bounded() -> None:
    rebuilt = dataclasses.asdict(State(BoundedList([1, 2], maxlen=3)))["recent"]

    rebuilt.extend(range(20_000))

    assert len(rebuilt) == rebuilt.maxlen == 1000


def test_list_of_a_bounded_list_has_its_bounds() -> None:
    original: BoundedList[int] = BoundedList([1, 2], maxlen=4, keep=2)

    assert bounds_of(BoundedList(original)) == (4, 2, None)
    assert bounds_of(BoundedList(original, maxlen=9)) == (9, 9, None)


def test_copy_is_not_reported_as_an_eviction() -> None:
    reported: list[Any] = []
    grown: list[list[int]] = [[], []]
    original = BoundedList(grown, max_bytes=10, sizeof=len, on_evict=reported.extend)
    for item in grown:
        item += range(100)

    copied = original.copy()

    assert copied == original
    assert reported == []
