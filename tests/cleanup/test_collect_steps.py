"""The steps that collect garbage and hand pages back."""

import gc
import weakref

import pytest

from memtools.cleanup import CollectAll, CollectYoung, TrimHeap, default_steps
from memtools.cleanup._steps import collect_measured
from memtools.readings import Level


class Circle:
    """Something that only the collector ends."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def no_collector():
    """Have nobody else collect, so that garbage waits for the step."""
    gc.disable()
    yield
    gc.enable()


def falling(*figures):
    left = list(figures)
    return lambda: left.pop(0)


def forever():
    return 1e9


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("level", list(Level))
def test_collecting_the_young_ends_young_circles(level):
    gc.collect()
    witness = weakref.ref(Circle())
    assert witness() is not None

    CollectYoung()(level, 0.0)

    assert witness() is None


@pytest.mark.usefixtures("no_collector")
def test_above_normal_the_middle_generation_is_collected_too():
    circle = Circle()
    gc.collect(0)  # in generation 1 from now on
    witness = weakref.ref(circle)
    del circle

    CollectYoung()(Level.WARNING, 0.0)

    assert witness() is None


@pytest.mark.usefixtures("no_collector")
def test_collecting_all_ends_old_circles_in_one_slice():
    circle = Circle()
    gc.collect()
    witness = weakref.ref(circle)
    del circle

    slices = list(CollectAll().slices(Level.WARNING, forever))

    assert witness() is None
    assert len(slices) == 1


@pytest.mark.parametrize("make", [CollectYoung, CollectAll, TrimHeap])
def test_what_usage_falls_by_was_given_back(make):
    assert make(read=falling(1000, 400))(Level.CRITICAL, 1e12) == 600


@pytest.mark.parametrize("make", [CollectYoung, CollectAll, TrimHeap])
def test_usage_that_rises_meanwhile_means_that_nothing_is_known(make):
    assert make(read=falling(400, 1000))(Level.CRITICAL, 1e12) == 0


def test_full_collection_is_begun_only_when_there_is_time_for_all_of_it(clock):
    pauses = []

    def collect():
        pauses.append(0.14)
        return 0.14

    step = CollectAll(read=lambda: 0, clock=clock, count=lambda: 2_000_000, collect=collect)

    assert list(step.slices(Level.WARNING, lambda: 0.139)) == []
    assert list(step.slices(Level.WARNING, lambda: 0.141)) == [0]
    assert len(pauses) == 1


def test_price_of_a_full_collection_is_learned_and_grows_with_the_heap(clock):
    blocks = [1_000_000]
    pauses = iter([0.5, 1.0, 1.0])
    step = CollectAll(read=lambda: 0, clock=clock, count=lambda: blocks[0], collect=lambda: next(pauses))
    list(step.slices(Level.WARNING, lambda: 0.1))

    assert list(step.slices(Level.WARNING, lambda: 0.49)) == []
    blocks[0] = 2_000_000
    assert list(step.slices(Level.WARNING, lambda: 0.99)) == []
    assert list(step.slices(Level.WARNING, lambda: 1.01)) == [0]


def test_collection_in_the_middle_of_another_is_none(clock):
    step = CollectAll(read=lambda: 0, clock=clock, collect=lambda: None)

    assert list(step.slices(Level.WARNING, forever)) == []


def test_pause_is_measured_by_the_collectors_own_word():
    callbacks = list(gc.callbacks)

    pause_s = collect_measured()

    assert pause_s is not None
    assert 0 < pause_s < 60
    assert gc.callbacks == callbacks


def test_pause_of_a_collection_that_could_not_begin_is_not_known():
    found = []

    class Last(Circle):
        def __del__(self):
            found.append(collect_measured())

    Last()
    gc.collect()

    assert found == [None]


def test_collector_that_the_user_has_switched_off_stays_off(no_collector):
    CollectAll()(Level.WARNING, 1e12)

    assert not gc.isenabled()


def test_heap_that_gave_little_is_left_alone_for_five_minutes(clock):
    trims = []
    gains = iter([8 << 20, (8 << 20) - 1, 0, 8 << 20])
    used = [1 << 30]

    def trim():
        trims.append(clock.now)
        used[0] -= next(gains)
        return True

    step = TrimHeap(read=lambda: used[0], clock=clock, trim=trim)
    for _ in range(4):
        list(step.slices(Level.CRITICAL, forever))
    assert len(trims) == 2  # the first was worth it, the second was not

    clock.advance(300)
    list(step.slices(Level.CRITICAL, forever))
    assert len(trims) == 3


def test_heap_trim_is_not_begun_where_the_last_took_longer_than_there_is_time(clock):
    used = [1 << 30]

    def trim():
        clock.advance(0.2)
        used[0] -= 100 << 20
        return True

    step = TrimHeap(read=lambda: used[0], clock=clock, trim=trim)

    assert list(step.slices(Level.CRITICAL, lambda: 0.1)) == [100 << 20]
    assert list(step.slices(Level.CRITICAL, lambda: 0.1)) == []
    assert list(step.slices(Level.CRITICAL, lambda: 0.3)) == [100 << 20]


def test_where_no_heap_can_be_trimmed_it_is_not_tried_again(clock):
    tries = []
    step = TrimHeap(read=lambda: 0, clock=clock, trim=lambda: bool(tries.append(1)))

    for _ in range(3):
        assert list(step.slices(Level.CRITICAL, forever)) == []

    assert len(tries) == 1


def test_steps_of_the_house_stand_in_the_order_of_their_price():
    steps = default_steps()

    assert [(step.name, step.least) for step in steps] == [
        ("trim", Level.WARNING),
        ("collect young", Level.NORMAL),
        ("collect all", Level.WARNING),
        ("trim heap", Level.CRITICAL),
    ]
