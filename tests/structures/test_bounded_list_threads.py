"""Bounded lists in several threads, which run at once where there is no GIL."""

import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from threading import Barrier, Event, Thread

import pytest

from memtools.structures import BoundedList

THREADS = 4
ADDED = 3_000  # items by each thread
# A list in Python adds and evicts in two steps, which only a lock keeps together.
BOUND_HOLDS_WITHIN_CALLS = not {"LockingListCore", "CBoundedListCore"}.isdisjoint(
    kind.__name__ for kind in BoundedList.__mro__
)


def in_threads(*works: Callable[[int], object]) -> None:
    """Run the functions at once, each in a thread of its own, with its number; raise what they raise."""
    start = Barrier(len(works))
    errors: list[BaseException] = []

    def run(number: int, work: Callable[[int], object]) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def numbers_of(thread: int) -> range:
    """The numbers that a thread adds, each of which is added once."""
    return range(thread * ADDED, (thread + 1) * ADDED)


def add_in_every_way(recent: "BoundedList[int]", thread: int) -> None:
    numbers = iter(numbers_of(thread))

    def append_each(items: list[int]) -> None:
        for item in items:
            recent.append(item)

    def insert_each(items: list[int]) -> None:
        for item in items:
            recent.insert(7, item)

    ways: list[Callable[[list[int]], object]] = [
        append_each,
        insert_each,
        recent.extend,
        lambda items: recent.extend(iter(items)),
        lambda items: recent.extend(tuple(items)),
        recent.__iadd__,
    ]
    chosen = random.Random(thread)
    while items := list(islice(numbers, chosen.randrange(1, 12))):
        chosen.choice(ways)(items)


@pytest.mark.parametrize("keep", [100, 60, 0])
def test_items_are_kept_or_reported_once(keep: int) -> None:
    reported: list[int] = []
    recent: BoundedList[int] = BoundedList(maxlen=100, keep=keep, on_evict=reported.extend)

    def add(thread: int) -> None:
        add_in_every_way(recent, thread)

    in_threads(*[add] * THREADS)

    seen = Counter([*recent, *reported])
    assert set(seen.values()) == {1}
    assert len(seen) == THREADS * ADDED
    assert len(recent) <= 100
    assert recent.statistics().evicted == len(reported)


@pytest.mark.parametrize("keep", [100, 60])
def test_evictions_without_a_hook_are_counted_once(keep: int) -> None:
    recent: BoundedList[int] = BoundedList(maxlen=100, keep=keep)

    def add(thread: int) -> None:
        add_in_every_way(recent, thread)

    in_threads(*[add] * THREADS)

    assert keep - THREADS <= len(recent) <= 100
    assert recent.statistics().evicted == THREADS * ADDED - len(recent)
    assert max(Counter(recent).values()) == 1


@pytest.mark.skipif(not BOUND_HOLDS_WITHIN_CALLS, reason="under the GIL, a list in Python adds first and then evicts")
@pytest.mark.parametrize("keep", [100, 60])
def test_other_threads_never_see_more_than_the_bound(keep: int) -> None:
    recent: BoundedList[int] = BoundedList(range(-100, 0), 100, keep=keep)
    done = Event()
    lengths: set[int] = set()

    def read(_: int) -> None:
        is_last = False
        while not is_last:
            is_last = done.is_set()
            lengths.update((len(recent), len(recent[:]), sum(1 for _ in recent)))

    def add(thread: int) -> None:
        try:
            for number in numbers_of(thread):
                recent.append(number)
                if number % 7 == 0:
                    recent.extend([number] * 5)
                    recent.insert(3, number)
        finally:
            done.set()

    in_threads(read, *[add] * THREADS)

    assert max(lengths) <= 100


def test_items_taken_meanwhile_are_taken_or_reported_once() -> None:
    reported: list[int] = []
    taken: list[int] = []
    recent: BoundedList[int] = BoundedList(maxlen=50, on_evict=reported.extend)

    def take(_: int) -> None:
        for _ in range(ADDED):
            try:
                taken.append(recent.pop(0))
            except IndexError:  # it is empty at this moment
                continue

    def add(thread: int) -> None:
        for number in numbers_of(thread):
            recent.append(number)

    in_threads(add, add, take, take)

    seen = Counter([*recent, *reported, *taken])
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * ADDED
    assert recent.statistics().evicted == len(reported)


def test_every_method_may_be_called_at_once() -> None:
    recent: BoundedList[int] = BoundedList(range(40), 40, keep=30)
    calls: list[Callable[[], object]] = [
        lambda: recent.append(1),
        lambda: recent.extend(range(20)),
        lambda: recent.extend([1, 2, 3]),
        lambda: recent.insert(5, 2),
        lambda: recent.__setitem__(slice(2, 4), [7, 8, 9]),
        lambda: recent.__imul__(3),
        lambda: recent.pop(),
        lambda: recent.sort(),
        lambda: recent.reverse(),
        lambda: recent.clear(),
        lambda: recent[-1],
        lambda: recent.copy(),
        lambda: sorted(recent),
        lambda: recent.check(),
        lambda: recent.statistics(),
    ]

    def call(thread: int) -> None:
        chosen = random.Random(thread)
        for _ in range(ADDED):
            try:
                chosen.choice(calls)()
            except (IndexError, ValueError):  # as in a list: it was empty, or changed while it was sorted
                continue

    in_threads(*[call] * THREADS)
    recent.check()

    assert len(recent) <= 40
    assert set(map(type, recent)) <= {int}


def test_finalisers_may_add_to_the_list_that_evicts_them() -> None:
    recent: BoundedList[object] = BoundedList(maxlen=20)

    class Returning:
        def __init__(self, times: int) -> None:
            self.times = times

        def __del__(self) -> None:
            if self.times:
                recent.append(Returning(self.times - 1))

    def add(_: int) -> None:
        for _ in range(ADDED // 10):
            recent.append(Returning(2))
            recent.extend([Returning(1), Returning(0)])

    in_threads(*[add] * THREADS)

    assert len(recent) <= 20
    for returning in recent:
        returning.times = 0  # type: ignore[attr-defined]  # the list holds nothing else


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads, which are what is tested
def test_a_child_of_a_fork_adds_though_threads_were_adding() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=100, keep=50)
    done = Event()

    def add(_: int) -> None:
        while not done.is_set():
            recent.append(1)
            recent.extend([2, 3])

    def fork(_: int) -> None:
        try:
            for _ in range(5):
                child = os.fork()
                if child == 0:
                    recent.extend(range(500))
                    os._exit(0 if len(recent) <= 100 else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            done.set()

    in_threads(fork, add, add)
