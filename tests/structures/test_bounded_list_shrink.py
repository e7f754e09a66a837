import gc
import math
import pickle
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


class Scripted:
    """A clock that each stroke moves on: so much for moving each item that stays, so much for each that goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, move_s: float, let_go_s: float) -> None:
        self.now = 100.0
        self.lengths: list[int] = []
        drop = BoundedList._evict

        def moving_on(recent: BoundedList[int], stale: slice, count: int) -> None:
            self.now += move_s * len(recent) + let_go_s * count
            self.lengths.append(len(recent))
            drop(recent, stale, count)

        monkeypatch.setattr(BoundedList, "_evict", moving_on)
        monkeypatch.setattr(_bounded_list, "monotonic", lambda: self.now)
        monkeypatch.setattr(_bounded_list, "thread_time", lambda: self.now)


def test_shrinking_returns_by_the_deadline_and_goes_on_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-6)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        began = clock.now
        recent.shrink(Level.CRITICAL, began + 0.005)
        slices.append(clock.now - began)

    assert recent == list(range(99_950, 100_000))
    assert max(slices) <= 0.005
    assert 20 <= len(slices) <= 40  # 100 ms of work


def test_the_first_slice_of_items_that_are_heavier_than_any_is_as_short_as_it_can_be_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recent = BoundedList(range(20_000), 20_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-4)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        began = clock.now
        recent.shrink(Level.CRITICAL, began + 0.005)
        slices.append(clock.now - began)

    # 256 items at first; from then on it is known what they weigh.
    assert max(slices[4:]) <= 0.005


def test_a_list_that_takes_longer_to_move_than_a_slice_lasts_is_still_taken_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recent = BoundedList(range(1_000_000), 1_000_000)
    clock = Scripted(monkeypatch, move_s=1.5e-9, let_go_s=20e-9)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        began = clock.now
        recent.shrink(Level.CRITICAL, began + 0.00125)
        slices.append(clock.now - began)

    assert max(slices) <= 0.0025
    assert len(slices) < 100


def test_half_of_a_list_is_half_of_what_there_was_when_shrinking_began(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-6)

    recent.shrink(Level.WARNING, clock.now + 0.005)
    assert recent.is_shrinking
    while recent.is_shrinking:
        recent.shrink(Level.WARNING, clock.now + 0.005)

    assert len(recent) == 50_000


def test_a_list_that_grew_while_it_was_being_shortened_loses_no_more_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 1_000_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-6)
    recent.shrink(Level.WARNING, clock.now + 0.005)
    recent.extend(range(200_000))
    length = len(recent)

    recent.shrink(Level.WARNING, math.inf)

    assert len(recent) == length // 2


def test_a_list_that_its_owner_emptied_in_between_has_nothing_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-6)
    recent.shrink(Level.CRITICAL, clock.now + 0.005)
    recent.clear()

    assert recent.shrink(Level.CRITICAL, clock.now + 0.005) == 0
    assert not recent.is_shrinking


def test_copies_of_a_list_that_is_being_shortened_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = Scripted(monkeypatch, move_s=0.4e-9, let_go_s=1e-6)
    recent.shrink(Level.CRITICAL, clock.now + 0.005)

    twin = pickle.loads(pickle.dumps(recent))

    assert twin == recent.copy() == recent
    assert recent.is_shrinking
    assert not twin.is_shrinking
    assert not recent.copy().is_shrinking


def test_a_long_stroke_is_weighed_by_some_of_its_items() -> None:
    recent = BoundedList([bytes(1000) for _ in range(50_000)], 50_000)
    before = sys.getsizeof(recent)

    given_back = recent.shrink(Level.CRITICAL, math.inf)

    exact = 49_950 * sys.getsizeof(bytes(1000)) + before - sys.getsizeof(recent)
    assert given_back == exact


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

    assert recent.statistics().size_bytes == sum(recent)


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
