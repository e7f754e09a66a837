"""`BoundedList.shrink`."""

import gc
import math
import pickle
import sys
import weakref

import pytest

from memtools.cleanup import Shrinkable, registered
from memtools.readings import Level
from memtools.structures import BoundedList, _bounded_list


def is_registered(shrinkable: object) -> bool:
    return any(found is shrinkable for found in registered())


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
def test_level_decides_how_many_items_stay(level: Level, length: int, left: int) -> None:
    recent = BoundedList(range(length), length)

    freed_bytes = recent.shrink(level, math.inf)

    assert recent == list(range(length - left, length))
    assert recent.statistics().evicted == length - left
    assert (freed_bytes > 0) == (left < length)


def test_freed_bytes_are_those_of_items_and_their_places() -> None:
    recent = BoundedList([bytes(1000) for _ in range(600)], 600)
    before = sys.getsizeof(recent)

    freed_bytes = recent.shrink(Level.CRITICAL, math.inf)

    assert freed_bytes == 550 * sys.getsizeof(bytes(1000)) + before - sys.getsizeof(recent)


class ScriptedClock:
    """A clock that each batch advances: by `move_s` for each item of the list and `release_s` for each evicted item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, move_s: float, release_s: float) -> None:
        self.now = 100.0
        self.lengths: list[int] = []
        trim_to = BoundedList._trim_to

        def trim_and_advance(recent: BoundedList[int], length: int) -> bool:
            self.now += move_s * len(recent) + release_s * (len(recent) - length)
            self.lengths.append(len(recent))
            return trim_to(recent, length)

        monkeypatch.setattr(BoundedList, "_trim_to", trim_and_advance)
        monkeypatch.setattr(_bounded_list, "monotonic", lambda: self.now)
        monkeypatch.setattr(_bounded_list, "thread_time", lambda: self.now)


def test_shrink_stops_at_the_deadline_and_continues_later(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-6)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        started = clock.now
        recent.shrink(Level.CRITICAL, started + 0.005)
        slices.append(clock.now - started)

    assert recent == list(range(99_950, 100_000))
    assert max(slices) <= 0.005
    assert 20 <= len(slices) <= 40  # 100 ms of work


def test_batches_of_very_slow_items_soon_meet_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recent = BoundedList(range(20_000), 20_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-4)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        started = clock.now
        recent.shrink(Level.CRITICAL, started + 0.005)
        slices.append(clock.now - started)

    # The first batch has 256 items; the next ones are sized by its duration.
    assert max(slices[4:]) <= 0.005


def test_list_that_is_slow_to_move_is_still_shrunk_in_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recent = BoundedList(range(1_000_000), 1_000_000)
    clock = ScriptedClock(monkeypatch, move_s=1.5e-9, release_s=20e-9)
    slices: list[float] = []

    while recent.is_shrinking or not slices:
        started = clock.now
        recent.shrink(Level.CRITICAL, started + 0.00125)
        slices.append(clock.now - started)

    assert max(slices) <= 0.0025
    assert len(slices) < 100


def test_warning_evicts_half_of_the_length_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-6)

    recent.shrink(Level.WARNING, clock.now + 0.005)
    assert recent.is_shrinking
    while recent.is_shrinking:
        recent.shrink(Level.WARNING, clock.now + 0.005)

    assert len(recent) == 50_000


def test_list_that_grew_meanwhile_loses_at_most_half(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 1_000_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-6)
    recent.shrink(Level.WARNING, clock.now + 0.005)
    recent.extend(range(200_000))
    length = len(recent)

    recent.shrink(Level.WARNING, math.inf)

    assert len(recent) == length // 2


def test_list_that_was_cleared_meanwhile_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-6)
    recent.shrink(Level.CRITICAL, clock.now + 0.005)
    recent.clear()

    assert recent.shrink(Level.CRITICAL, clock.now + 0.005) == 0
    assert not recent.is_shrinking


def test_copies_of_a_shrinking_list_are_not_shrinking(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = BoundedList(range(100_000), 100_000)
    clock = ScriptedClock(monkeypatch, move_s=0.4e-9, release_s=1e-6)
    recent.shrink(Level.CRITICAL, clock.now + 0.005)

    copied = pickle.loads(pickle.dumps(recent))

    assert copied == recent.copy() == recent
    assert recent.is_shrinking
    assert not copied.is_shrinking
    assert not recent.copy().is_shrinking


def test_size_of_a_large_batch_is_estimated() -> None:
    recent = BoundedList([bytes(1000) for _ in range(50_000)], 50_000)
    before = sys.getsizeof(recent)

    freed_bytes = recent.shrink(Level.CRITICAL, math.inf)

    exact = 49_950 * sys.getsizeof(bytes(1000)) + before - sys.getsizeof(recent)
    assert freed_bytes == exact


def test_passed_deadline_evicts_nothing() -> None:
    recent = BoundedList(range(1000), 1000)

    assert recent.shrink(Level.CRITICAL, 0.0) == 0
    assert len(recent) == 1000


def test_hook_that_puts_items_back_cannot_prolong_shrink() -> None:
    recent: BoundedList[int] = BoundedList(range(2000), 2000, on_evict=lambda evicted: recent.extend(evicted))

    recent.shrink(Level.CRITICAL, math.inf)

    assert len(recent) == 2000


def test_hook_gets_items_evicted_by_shrink() -> None:
    reported: list[int] = []
    recent = BoundedList(range(600), 600, on_evict=reported.extend)

    recent.shrink(Level.WARNING, math.inf)

    assert reported == list(range(300))


def test_sizes_stay_in_step_after_shrink() -> None:
    recent = BoundedList(range(3000), max_bytes="1 MiB", sizeof=lambda item: item)

    recent.shrink(Level.WARNING, math.inf)

    assert recent.statistics().size_bytes == sum(recent)


def test_list_is_registered_as_long_as_it_lives() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=3)
    shrinkable: Shrinkable = recent
    reference = weakref.ref(recent)

    assert is_registered(shrinkable)
    del recent, shrinkable
    gc.collect()

    assert reference() is None


def test_second_init_changes_the_registration() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=3, shrinkable=False)
    assert not is_registered(recent)

    recent.__init__((), 3)  # type: ignore[misc]
    assert is_registered(recent)

    recent.__init__((), 3, shrinkable=False)  # type: ignore[misc]
    assert not is_registered(recent)


def test_copies_are_registered_as_their_originals() -> None:
    on, off = BoundedList([1], 3), BoundedList([1], 3, shrinkable=False)

    copies = on.copy(), off.copy()

    assert [is_registered(copy) for copy in copies] == [True, False]
