"""`BoundedList` as a list: adding, extending, repeating, bypassed bounds."""

import bisect
import heapq
import json
import random
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import pytest

from memtools.structures import BoundedList

_CORE = {kind.__name__ for kind in BoundedList.__mro__}
EVICTS_ONE_FOR_ONE = "LockingListCore" not in _CORE and not (
    "CBoundedListCore" in _CORE and sysconfig.get_config_var("Py_GIL_DISABLED")
)


class Witness:
    """Counts how many of it are alive."""

    alive = 0
    most_alive = 0

    def __init__(self) -> None:
        Witness.alive += 1
        Witness.most_alive = max(Witness.most_alive, Witness.alive)

    def __del__(self) -> None:
        Witness.alive -= 1


@pytest.fixture
def witnesses() -> Iterator[type[Witness]]:
    Witness.alive = Witness.most_alive = 0
    yield Witness
    assert Witness.alive == 0


def test_exact_window_keeps_the_last_items() -> None:
    recent = BoundedList(range(3), 3)

    recent.append(3)

    assert recent == [1, 2, 3]
    assert recent.statistics().evicted == 1


def test_lower_keep_trims_in_one_batch() -> None:
    recent = BoundedList(range(10), 10, keep=4)

    recent.append(10)

    assert recent == [7, 8, 9, 10]
    assert recent.statistics().evicted == 7


def test_keep_of_zero_empties_the_list_on_overflow() -> None:
    recent = BoundedList([1, 2], 2, keep=0)

    recent.append(3)

    assert recent == []
    assert recent.statistics().evicted == 3


def test_maxlen_of_zero_keeps_the_list_empty() -> None:
    nothing: BoundedList[int] = BoundedList(maxlen=0)

    nothing.append(1)
    nothing.extend([2, 3])
    nothing.extend(iter([2, 3]))
    nothing += (4,)
    nothing.insert(0, 5)
    nothing[:] = [6]

    assert nothing == []
    assert nothing.statistics().evicted == 8


def test_bounded_list_is_a_list() -> None:
    recent = BoundedList([3, 1, 2], 3)

    assert isinstance(recent, list)
    assert json.dumps(recent) == "[3, 1, 2]"
    assert repr(recent) == "[3, 1, 2]"
    assert recent == [3, 1, 2]
    assert sorted(recent) == [1, 2, 3]
    assert not BoundedList((), 3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(recent)


def test_slices_and_sums_are_plain_lists() -> None:
    recent = BoundedList([1, 2, 3], 3)

    more: list[Any] = recent + [4]  # noqa: RUF005  # the operator is tested
    results: list[Any] = [more, recent[:2], recent[::-1], recent * 2, 2 * recent]

    assert [type(result) for result in results] == [list] * 5
    assert more == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["__getitem__", "__len__", "__iter__", "__contains__", "__eq__", "__reversed__"])
def test_reading_methods_are_those_of_list(name: str) -> None:
    assert getattr(BoundedList, name) is getattr(list, name)


@pytest.mark.parametrize("name", ["pop", "remove", "clear", "sort", "reverse", "index", "count"])
def test_removing_and_reordering_methods_are_those_of_list(name: str) -> None:
    assert getattr(BoundedList, name) is getattr(list, name)


def test_deleting_is_done_in_c() -> None:
    assert type(BoundedList.__delitem__) is type(list.__delitem__)


def test_list_has_no_instance_dict() -> None:
    recent = BoundedList([1], 1)

    with pytest.raises(AttributeError):
        recent.note = "no"  # type: ignore[attr-defined]
    assert not hasattr(recent, "__dict__")


def test_insert_at_the_front_of_a_full_list_evicts_the_item() -> None:
    recent = BoundedList([1, 2, 3], 3)

    recent.insert(0, 0)
    assert recent == [1, 2, 3]

    recent.insert(1, 9)
    assert recent == [9, 2, 3]

    recent.insert(99, 4)
    assert recent == [2, 3, 4]


def test_slice_assignment_stays_within_the_bound() -> None:
    recent = BoundedList(range(5), 5)

    recent[1:2] = "abc"

    assert recent == ["b", "c", 2, 3, 4]
    recent[0] = "x"
    assert recent == ["x", "c", 2, 3, 4]
    with pytest.raises(ValueError, match="extended slice"):
        recent[::2] = [1]


def test_extend_by_itself_doubles_once() -> None:
    recent = BoundedList([1, 2, 3], 10)

    recent.extend(recent)
    assert recent == [1, 2, 3, 1, 2, 3]

    recent += recent
    assert recent == [3, 1, 2, 3, 1, 2, 3, 1, 2, 3][-10:]


@pytest.mark.parametrize("length", [5, 1000, 3000, 50_000])
def test_extend_by_a_view_of_itself_reads_the_old_items(length: int) -> None:
    recent = BoundedList(range(length), length)
    expected = list(reversed(recent))

    recent.extend(reversed(recent))

    assert recent == expected


def test_iadd_returns_the_same_object() -> None:
    recent = before = BoundedList([1, 2], 3)

    recent += (3, 4)

    assert recent is before
    assert recent == [2, 3, 4]


def test_imul_makes_no_copies_that_would_be_evicted() -> None:
    recent = BoundedList([1, 2, 3], 7, keep=5)

    recent *= 10**18  # a list would need more memory than exists

    assert recent == [2, 3, 1, 2, 3]
    recent *= 1
    assert recent == [2, 3, 1, 2, 3]
    recent *= -1
    assert recent == []
    recent *= 10**30
    assert recent == []


def test_imul_by_another_type_raises_as_in_list() -> None:
    recent = BoundedList([1], 3)

    with pytest.raises(TypeError, match="multiply sequence by non-int"):
        recent *= "2"  # type: ignore[arg-type]

    assert recent == [1]


def test_generator_has_at_most_bound_and_one_portion_alive(witnesses: type[Witness]) -> None:
    recent: BoundedList[Witness] = BoundedList(maxlen=100)

    recent.extend(witnesses() for _ in range(20_000))

    assert len(recent) == 100
    assert witnesses.most_alive <= 100 + 1024 + 1
    assert recent.statistics().evicted == 19_900
    recent.clear()


def test_generator_into_a_full_list_is_read_in_portions(witnesses: type[Witness]) -> None:
    recent: BoundedList[Witness | None] = BoundedList([None] * 5000, 5000)

    recent.extend(witnesses() for _ in range(20_000))

    assert witnesses.most_alive <= 5000 + 1024 + 1
    recent.clear()


@pytest.mark.parametrize("length", [1024, 2047, 2048, 2049, 4096])
def test_overflow_within_an_iterator_leaves_keep_items(length: int) -> None:
    recent = BoundedList(range(100), 100, keep=30)

    recent.extend(iter(range(length)))

    assert recent == list(range(length - 30, length))


@pytest.mark.parametrize("length", [3, 1024, 2048, 5000])
def test_full_list_extended_by_itself_is_unchanged(length: int) -> None:
    recent = BoundedList(range(length), length)
    list.append(recent, length)  # bypasses the bound

    recent.extend(recent)

    assert recent == list(range(1, length + 1))


def test_extend_by_iterator_and_by_list_are_equal() -> None:
    by_list = BoundedList(range(90), 100, keep=30)
    by_iterator = BoundedList(range(90), 100, keep=30)

    by_list.extend(list(range(5000)))
    by_iterator.extend(iter(range(5000)))

    assert by_list == by_iterator == list(range(4970, 5000))
    assert by_list.statistics() == by_iterator.statistics()


def test_iterator_that_fails_leaves_its_items() -> None:
    def broken() -> Iterator[int]:
        yield from range(5000)
        raise OSError("evicted")

    recent = BoundedList([-1], 10)

    with pytest.raises(OSError, match="evicted"):
        recent.extend(broken())

    assert recent == list(range(4990, 5000))


def test_interrupt_in_an_iterator_passes() -> None:
    def interrupted() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    recent: BoundedList[int] = BoundedList(maxlen=10)

    with pytest.raises(KeyboardInterrupt):
        recent.extend(interrupted())

    assert recent == [1]


def test_extend_reads_a_huge_range_in_portions() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=3)

    recent.extend(islice(count(), 100_000))

    assert recent == [99_997, 99_998, 99_999]


def test_extend_by_no_iterable_changes_nothing() -> None:
    recent = BoundedList([1], 3)

    with pytest.raises(TypeError, match="not iterable"):
        recent.extend(7)  # type: ignore[arg-type]

    assert recent == [1]


def test_second_init_replaces_items_and_bounds() -> None:
    recent = BoundedList(range(10), 5)

    recent.__init__("abc", 2, keep=1)  # type: ignore[misc]

    assert recent == ["c"]
    assert (recent.maxlen, recent.keep, recent.statistics().evicted) == (2, 1, 2)


def test_bypassed_bound_is_restored_by_the_next_extend() -> None:
    recent = BoundedList(range(3), 3)

    list.append(recent, 3)
    heapq.heappush(recent, 4)
    assert len(recent) == 5
    recent.append(5)

    # An exact window evicts one item for each new one; where a lock is held anyway, all that is too much.
    assert len(recent) == (5 if EVICTS_ONE_FOR_ONE else 3)
    recent.extend([6])
    assert recent == [4, 5, 6]


def test_bypassed_bound_is_restored_by_check() -> None:
    recent = BoundedList([5, 6, 7], 3)
    heapq.heappush(recent, 8)

    evicted = recent.check()

    assert evicted == 1
    assert recent == [6, 7, 8]
    assert recent.check() == 0


def test_standard_library_functions_for_lists_work() -> None:
    recent = BoundedList(range(100), 100)

    random.Random(1).shuffle(recent)
    recent.sort(reverse=True)
    bisect.insort(recent, 50, key=lambda number: -number)

    assert len(recent) == 100
    assert recent == sorted([*range(99), 50], reverse=True)


def test_finalisers_of_evicted_items_may_add_to_the_list() -> None:
    recent: BoundedList[object] = BoundedList(maxlen=3)

    class Echo:
        def __del__(self) -> None:
            recent.append("echo")

    for _ in range(5):
        recent.append(Echo())
    recent.extend([1, 2, 3, 4])

    assert len(recent) <= 3
    recent.clear()
    recent.clear()


@pytest.mark.parametrize("keep", [50, 30])
def test_threads_leave_no_more_than_the_bound(keep: int) -> None:
    recent: BoundedList[int] = BoundedList(maxlen=50, keep=keep)
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def add() -> None:
        try:
            start.wait(10)
            for number in range(5000):
                recent.append(number)
                if number % 100 == 0:
                    recent.extend(range(20))
                    recent.clear()
        except BaseException as failure:
            failures.append(failure)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)

    assert failures == []
    assert len(recent) <= 50


def test_list_agrees_with_deque_on_a_long_run() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=7)
    peer: deque[int] = deque(maxlen=7)

    for number in range(1000):
        recent.append(number)
        peer.append(number)
        assert recent == list(peer)


def test_subclass_overrides_are_called() -> None:
    seen: list[str] = []

    class Noted(BoundedList[int]):
        def append(self, item: int, /) -> None:
            seen.append("append")
            super().append(item)

    noted = Noted([1], 2)
    noted.append(2)
    noted.append(3)

    assert seen == ["append", "append"]
    assert noted == [2, 3]


def test_append_to_a_list_emptied_meanwhile_leaves_it_empty() -> None:
    class Raced(BoundedList[int]):
        def __len__(self) -> int:
            length = super().__len__()
            self.clear()  # as another thread may do here
            return length

    raced = Raced([1], 1)

    raced.append(2)
    raced.append(3)
    list.append(raced, 4)
    list.append(raced, 5)
    raced.append(6)

    assert list(raced) == []
