"""The steps that collect garbage and trim the heap."""

import gc
import weakref

import pytest

from memtools.cleanup import CollectAll, CollectYoung, TrimHeap, default_steps
from memtools.cleanup._steps import timed_collect
from memtools.readings import Level


class Cycle:
    """An object that only the collector frees."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def no_collector():
    """Disable automatic collections, so that garbage waits for the step."""
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
def test_collect_young_frees_young_cycles(level):
    gc.collect()
    witness = weakref.ref(Cycle())
    assert witness() is not None

    CollectYoung()(level, 0.0)

    assert witness() is None


@pytest.mark.usefixtures("no_collector")
def test_collect_young_above_normal_includes_generation_one():
    cycle = Cycle()
    gc.collect(0)  # in generation 1 from now on
    witness = weakref.ref(cycle)
    del cycle

    CollectYoung()(Level.WARNING, 0.0)

    assert witness() is None


@pytest.mark.usefixtures("no_collector")
def test_collect_all_frees_old_cycles_in_one_slice():
    cycle = Cycle()
    gc.collect()
    witness = weakref.ref(cycle)
    del cycle

    slices = list(CollectAll().slices(Level.WARNING, forever))

    assert witness() is None
    assert len(slices) == 1


@pytest.mark.parametrize("make", [CollectYoung, CollectAll, TrimHeap])
def test_fall_of_usage_is_reported_as_freed(make):
    assert make(read=falling(1000, 400))(Level.CRITICAL, 1e12) == 600


@pytest.mark.parametrize("make", [CollectYoung, CollectAll, TrimHeap])
def test_rise_of_usage_is_reported_as_zero_bytes(make):
    assert make(read=falling(400, 1000))(Level.CRITICAL, 1e12) == 0


def test_collect_all_starts_only_if_the_budget_covers_it(clock):
    pauses = []

    def collect():
        pauses.append(0.14)
        return 0.14

    step = CollectAll(read=lambda: 0, clock=clock, count=lambda: 2_000_000, collect=collect)

    assert list(step.slices(Level.WARNING, lambda: 0.139)) == []
    assert list(step.slices(Level.WARNING, lambda: 0.141)) == [0]
    assert len(pauses) == 1


def test_pause_estimate_is_learned_and_grows_with_the_heap(clock):
    blocks = [1_000_000]
    pauses = iter([0.5, 1.0, 1.0])
    step = CollectAll(read=lambda: 0, clock=clock, count=lambda: blocks[0], collect=lambda: next(pauses))
    list(step.slices(Level.WARNING, lambda: 0.1))

    assert list(step.slices(Level.WARNING, lambda: 0.49)) == []
    blocks[0] = 2_000_000
    assert list(step.slices(Level.WARNING, lambda: 0.99)) == []
    assert list(step.slices(Level.WARNING, lambda: 1.01)) == [0]


def test_collect_all_during_another_collection_has_no_slice(clock):
    step = CollectAll(read=lambda: 0, clock=clock, collect=lambda: None)

    assert list(step.slices(Level.WARNING, forever)) == []


def test_timed_collect_measures_the_pause():
    callbacks = list(gc.callbacks)

    pause_s = timed_collect()

    assert pause_s is not None
    assert 0 < pause_s < 60
    assert gc.callbacks == callbacks


def test_timed_collect_inside_a_collection_returns_none():
    found = []

    class Last(Cycle):
        def __del__(self):
            found.append(timed_collect())

    Last()
    gc.collect()

    assert found == [None]


def test_disabled_collector_stays_disabled(no_collector):
    CollectAll()(Level.WARNING, 1e12)

    assert not gc.isenabled()


def test_trim_that_freed_little_is_not_repeated_at_once(clock):
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


def test_trim_does_not_start_if_the_last_took_longer_than_left(clock):
    used = [1 << 30]

    def trim():
        clock.advance(0.2)
        used[0] -= 100 << 20
        return True

    step = TrimHeap(read=lambda: used[0], clock=clock, trim=trim)

    assert list(step.slices(Level.CRITICAL, lambda: 0.1)) == [100 << 20]
    assert list(step.slices(Level.CRITICAL, lambda: 0.1)) == []
    assert list(step.slices(Level.CRITICAL, lambda: 0.3)) == [100 << 20]


def test_trim_without_platform_support_is_tried_once(clock):
    tries = []
    step = TrimHeap(read=lambda: 0, clock=clock, trim=lambda: bool(tries.append(1)))

    for _ in range(3):
        assert list(step.slices(Level.CRITICAL, forever)) == []

    assert len(tries) == 1


def test_default_steps_are_in_order_of_cost():
    steps = default_steps()

    assert [(step.name, step.min_level) for step in steps] == [
        ("shrink registered", Level.WARNING),
        ("collect young", Level.NORMAL),
        ("collect all", Level.WARNING),
        ("trim heap", Level.CRITICAL),
    ]
