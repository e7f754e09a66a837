"""Code that runs during a call that adds: finalisers, hooks, collections, other threads."""

import gc
import inspect
import operator
import sys
import sysconfig
import weakref
from collections import deque
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest

from memtools.structures import BoundedList

BOUNDS: list[dict[str, Any]] = [
    {"maxlen": 5},
    {"maxlen": 5, "keep": 2},
    {"maxlen": 5, "keep": 0},
    {"maxlen": 5, "keep": 3, "on_evict": lambda evicted: None},
    {"maxlen": 5, "max_bytes": 10_000},
]


class Last:
    """Calls a function when it is finalised."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def _insert(recent: BoundedList[Any], item: object) -> None:
    recent.insert(len(recent), item)


def _assign(recent: BoundedList[Any], item: object) -> None:
    recent[len(recent) :] = [item]


ADDITIONS: dict[str, Callable[[BoundedList[Any], Any], object]] = {
    "append": lambda recent, item: recent.append(item),
    "extend": lambda recent, item: recent.extend([item]),
    "extend by iterator": lambda recent, item: recent.extend(iter([item])),
    "insert": _insert,
    "set slice": _assign,
    "+=": lambda recent, item: operator.iadd(recent, [item]),
}


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
@pytest.mark.parametrize("act", ["append", "clear", "extend", "del", "set"])
def test_finaliser_may_change_the_list_that_evicts_its_object(
    bounds: dict[str, Any], add: Callable[[BoundedList[Any], Any], object], act: str
) -> None:
    recent: BoundedList[Any] = BoundedList(**bounds, shrinkable=False)
    turns: list[int] = []

    def change() -> None:
        turns.append(len(recent))
        match act:
            case "append":
                recent.append(-1)
            case "clear":
                recent.clear()
            case "extend":
                recent.extend(range(20))
            case "del":
                del recent[: len(recent) // 2]
            case _:
                recent[:] = range(9)

    for number in range(40):
        add(recent, Last(change) if number % 3 == 0 else number)
        assert len(recent) <= 5

    assert turns


@pytest.mark.parametrize("maxlen", [*range(1, 70), 127, 128, 129, 1000])
def test_exact_window_moves_each_item_by_one_place(maxlen: int) -> None:
    recent: BoundedList[int] = BoundedList(range(1000, 1000 + maxlen), maxlen, shrinkable=False)
    peer = deque(recent, maxlen)

    for number in range(40):
        recent.append(-number)
        peer.append(-number)
        assert recent == list(peer)
    assert recent.statistics().evicted == 40


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_no_reference_is_lost_or_kept(bounds: dict[str, Any], add: Callable[[BoundedList[Any], Any], object]) -> None:
    item = object()
    recent: BoundedList[Any] = BoundedList(**bounds, shrinkable=False)
    before = sys.getrefcount(item)

    for _ in range(1000):
        add(recent, item)
    held = sys.getrefcount(item) - before
    length = len(recent)
    recent.clear()

    assert held == length
    assert sys.getrefcount(item) == before


def test_list_that_holds_itself_is_collected() -> None:
    recent: BoundedList[Any] = BoundedList(maxlen=2)
    for _ in range(5):
        recent.append(recent)
    evicted = weakref.ref(recent)

    del recent
    gc.collect()

    assert evicted() is None


@pytest.mark.skipif(
    sys.version_info < (3, 14) and bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="3.13 keeps every class for ever once a thread was started without a GIL, those of plain lists, too",
)
def test_class_made_at_run_time_is_collected_with_its_lists() -> None:
    class Passing(BoundedList[Any]):
        pass

    recent = Passing([Passing], 3)  # the list holds its class, and its class is held by the list
    evicted = weakref.ref(Passing)

    del recent, Passing
    gc.collect()

    assert evicted() is None


def test_nested_lists_are_freed_without_a_deep_stack() -> None:
    nested: BoundedList[Any] = BoundedList(maxlen=1, shrinkable=False)

    for _ in range(100_000):
        outer: BoundedList[Any] = BoundedList(maxlen=1, shrinkable=False)
        outer.append(nested)
        nested = outer
    del outer, nested

    assert gc.collect() >= 0


def test_several_threads_append_within_the_bound() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=100)
    start = Barrier(4)

    def add() -> None:
        start.wait()
        for number in range(20_000):
            recent.append(number)

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(recent) <= 100
    assert set(map(type, recent)) == {int}


def test_list_before_init_raises_attribute_error() -> None:
    recent: BoundedList[int] = BoundedList.__new__(BoundedList)

    with pytest.raises(AttributeError):
        recent.append(1)


def test_iadd_calls_extend_of_a_subclass() -> None:
    class Doubling(BoundedList[int]):
        def extend(self, iterable: Any, /) -> None:
            super().extend([2 * item for item in iterable])

    recent = Doubling([1], 3)
    recent += (2,)

    assert recent == [2, 4]


def test_wrong_arguments_raise_as_in_list() -> None:
    recent: Any = BoundedList([1, 2], 3)

    for wrong in ((), (1,), ("0", 1), (1, 2, 3)):
        with pytest.raises(TypeError):
            recent.insert(*wrong)
    for method in (recent.append, recent.extend):
        with pytest.raises(TypeError):
            method()
    with pytest.raises(TypeError):
        recent.extend(5)
    with pytest.raises(OverflowError):
        recent.insert(2**70, 1)

    assert recent == [1, 2]


def test_sort_detects_a_key_that_adds_items() -> None:
    recent: BoundedList[int] = BoundedList([3, 1, 2], 3)

    def key(item: int) -> int:
        for number in range(5):
            recent.append(number)
        return item

    with pytest.raises(ValueError, match="modified"):
        recent.sort(key=key)
    assert recent == [1, 2, 3]


@pytest.mark.parametrize("name", ["append", "extend", "insert"])
def test_adding_methods_have_signatures(name: str) -> None:
    method = getattr(BoundedList, name)

    kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}

    assert kinds == {inspect.Parameter.POSITIONAL_ONLY}
    assert "the oldest" in method.__doc__ or "`keep`" in method.__doc__
