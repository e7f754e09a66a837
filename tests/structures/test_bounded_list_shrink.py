import gc
import math
import sys
import weakref

import pytest

from memtools.cleanup import Shrinkable, registered
from memtools.readings import Level
from memtools.structures import BoundedList, _bounded_list


def is_registered(thing: object) -> bool:
    return any(other is thing for other in registered())


@pytest.mark.parametrize(
    ("level", "length", "left"),
    [
        (Level.NORMAL, 10_000, 10_000),
        (Level.WARNING, 500, 500),
        (Level.WARNING, 501, 250),
        (Level.WARNING, 10_000, 5_000),
        (Level.CRITICAL, 100, 100),
        (Level.CRITICAL, 101, 50),
        (Level.CRITICAL, 10_000, 50),
    ],
)
def test_level_decides_how_much_stays(level: Level, length: int, left: int) -> None:
    recent = BoundedList(range(length), length)

    given_back = recent.shrink(level, math.inf)

    assert recent == list(range(length - left, length))
    assert recent.statistics().evicted == length - left
    assert (given_back > 0) == (left < length)


def test_bytes_given_back_are_those_of_the_items_and_their_places() -> None:
    recent = BoundedList([bytes(1000) for _ in range(600)], 600)
    before = sys.getsizeof(recent)

    given_back = recent.shrink(Level.CRITICAL, math.inf)

    assert given_back == 550 * sys.getsizeof(bytes(1000)) + before - sys.getsizeof(recent)


def test_shrinking_stops_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(_bounded_list, "monotonic", lambda: next(clock))
    recent = BoundedList(range(100_000), 100_000)

    recent.shrink(Level.CRITICAL, 2.5)

    stroke = (100_000 - 50) // 32
    assert len(recent) == 100_000 - 2 * stroke


def test_passed_deadline_takes_nothing() -> None:
    recent = BoundedList(range(1000), 1000)

    assert recent.shrink(Level.CRITICAL, 0.0) == 0
    assert len(recent) == 1000


def test_hook_that_puts_items_back_cannot_keep_the_ladder_busy() -> None:
    recent: BoundedList[int] = BoundedList(range(2000), 2000, on_evict=lambda gone: recent.extend(gone))

    recent.shrink(Level.CRITICAL, math.inf)

    assert len(recent) == 2000


def test_hook_is_told_what_went_for_want_of_memory() -> None:
    told: list[int] = []
    recent = BoundedList(range(600), 600, on_evict=told.extend)

    recent.shrink(Level.WARNING, math.inf)

    assert told == list(range(300))


def test_list_bounded_by_bytes_stays_in_step() -> None:
    recent = BoundedList(range(3000), max_bytes="1 MiB", sizeof=lambda item: item)

    recent.shrink(Level.WARNING, math.inf)

    assert recent.statistics().bytes == sum(recent)


def test_list_is_on_the_register_for_as_long_as_it_lives() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=3)
    thing: Shrinkable = recent
    witness = weakref.ref(recent)

    assert is_registered(thing)
    del recent, thing
    gc.collect()

    assert witness() is None


def test_list_may_stay_off_the_register_and_change_its_mind() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=3, shrinkable=False)
    assert not is_registered(recent)

    recent.__init__((), 3)  # type: ignore[misc]
    assert is_registered(recent)

    recent.__init__((), 3, shrinkable=False)  # type: ignore[misc]
    assert not is_registered(recent)


def test_copies_are_on_the_register_as_their_originals_are() -> None:
    on, off = BoundedList([1], 3), BoundedList([1], 3, shrinkable=False)

    copies = on.copy(), off.copy()

    assert [is_registered(copy) for copy in copies] == [True, False]
