"""The step that shrinks registered objects: order, slices, and objects that misbehave."""

import asyncio
import gc
import logging
import weakref

import pytest

from memtools.cleanup import Reclaimer, ShrinkRegistered, register, registered, unregister
from memtools.cleanup._registry import registrations
from memtools.decorators import bounded_history
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.structures import BoundedList

pytestmark = pytest.mark.usefixtures("empty_registry")


class ScriptedShrinkable:
    """A registered object that does what the test scripts."""

    def __init__(self, clock, *, size=100, gives=(10,), takes=0.0, does=None, log=None, name=None):
        self._clock = clock
        self._size = size
        self._gives = list(gives)
        self._takes = takes
        self._log = log
        self.does = does
        self.name = name
        self.calls = []
        register(self)

    def __sizeof__(self):
        return self._size

    def shrink(self, level, deadline):
        self.calls.append((level, deadline - self._clock.now))
        if self._log is not None:
            self._log.append(self.name)
        self._clock.advance(self._takes)
        if self.does is not None:
            self.does()
        return self._gives.pop(0) if self._gives else 0


class Long(ScriptedShrinkable):
    """An object with so much to free that it needs several slices."""

    @property
    def is_shrinking(self):
        return bool(self._gives)


def unlimited():
    return 1e9


@pytest.fixture
def step(clock):
    return ShrinkRegistered(slice_s=0.01, clock=clock)


def test_shrink_gets_the_level_and_a_deadline_within_the_slice(step, clock):
    objects = [ScriptedShrinkable(clock, takes=0.001) for _ in range(3)]

    slices = list(step.slices(Level.CRITICAL, unlimited))

    assert slices == [30]
    for shrinkable in objects:
        ((level, left_s),) = shrinkable.calls
        assert level is Level.CRITICAL
        assert 0.005 <= left_s <= 0.01


def test_step_without_registered_objects_has_no_slice(step):
    assert list(step.slices(Level.WARNING, unlimited)) == []


def test_largest_objects_are_asked_first(step, clock):
    log = []
    objects = [ScriptedShrinkable(clock, size=size, log=log, name=str(size)) for size in (200, 12_800, 3_200, 800)]

    list(step.slices(Level.WARNING, unlimited))

    assert log == ["12800", "3200", "800", "200"]
    assert len(objects) == 4


def test_object_that_freed_nothing_is_asked_last_until_it_grew(step, clock):
    log = []
    empty = ScriptedShrinkable(clock, size=100_000, gives=[], log=log, name="empty")
    full = ScriptedShrinkable(clock, size=100, gives=[10] * 9, log=log, name="full")

    for _ in range(2):
        list(step.slices(Level.WARNING, unlimited))
    empty._size = 300_000
    list(step.slices(Level.WARNING, unlimited))

    assert log == ["empty", "full", "full", "empty", "empty", "full"]
    assert len(full.calls) == 3


def test_bytes_freed_last_time_count_more_than_shallow_size(step, clock):
    log = []
    deep = ScriptedShrinkable(clock, size=50, gives=[10**6] * 9, log=log, name="deep")
    flat = ScriptedShrinkable(clock, size=5_000, gives=[5_000] * 9, log=log, name="flat")

    for _ in range(2):
        list(step.slices(Level.WARNING, unlimited))

    assert log == ["flat", "deep", "deep", "flat"]
    assert len(deep.calls) == len(flat.calls)


def test_object_whose_sizeof_raises_is_asked(step, clock):
    class Unreadable(ScriptedShrinkable):
        def __sizeof__(self):
            raise LookupError

    unreadable = Unreadable(clock)

    assert list(step.slices(Level.WARNING, unlimited)) == [10]
    assert len(unreadable.calls) == 1


def test_unfinished_object_is_asked_again_in_the_next_slice(step, clock):
    long, other = Long(clock, gives=[5, 6, 7], takes=0.01, size=10_000), ScriptedShrinkable(clock)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert slices == [5, 6, 7, 10]
    assert [left_s for _, left_s in long.calls] == [pytest.approx(0.01)] * 3
    assert len(other.calls) == 1


def test_return_at_the_deadline_means_unfinished(step, clock):
    slow, quick = (
        ScriptedShrinkable(clock, gives=[5, 6, 0], takes=0.011, size=10_000),
        ScriptedShrinkable(clock, gives=[7, 8]),
    )

    slices = list(step.slices(Level.WARNING, unlimited))

    assert slices == [5, 6, 0, 7]
    assert (len(slow.calls), len(quick.calls)) == (3, 1)


def test_unfinished_object_that_frees_nothing_is_given_up(step, clock):
    class Endless(ScriptedShrinkable):
        is_shrinking = True

    endless, other = Endless(clock, gives=[], size=10_000), ScriptedShrinkable(clock)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert len(endless.calls) == 3
    assert sum(slices) == 10
    assert len(other.calls) == 1


def test_shrinking_ends_when_time_is_up(step, clock):
    long = Long(clock, gives=[1] * 100, takes=0.01)
    until = clock.now + 0.045

    slices = list(step.slices(Level.WARNING, lambda: until - clock.now))

    assert len(slices) == 5
    assert long.calls[-1][1] == pytest.approx(0.005)


def test_call_ends_by_its_deadline(step, clock):
    ScriptedShrinkable(clock, takes=0.004)
    keep = [ScriptedShrinkable(clock, gives=[1], takes=0.004) for _ in range(20)]

    freed_bytes = step(Level.WARNING, clock.now + 0.02)

    assert 0 < freed_bytes < 30
    assert sum(len(shrinkable.calls) for shrinkable in keep) == 5


def test_many_small_objects_share_a_slice(step, clock):
    objects = [ScriptedShrinkable(clock, takes=0.001) for _ in range(10)]

    slices = list(step.slices(Level.WARNING, unlimited))

    assert len(slices) in (2, 3)
    assert sum(slices) == 100
    assert all(len(shrinkable.calls) == 1 for shrinkable in objects)


def test_sorting_many_objects_takes_its_own_slices(step, clock):
    class SlowSizeof(ScriptedShrinkable):
        def __sizeof__(self):
            clock.advance(1e-5)
            return 100

    objects = [SlowSizeof(clock) for _ in range(5_000)]
    slices = step.slices(Level.WARNING, unlimited)

    began = clock.now
    next(slices)

    assert clock.now - began <= 0.0101
    assert not any(shrinkable.calls for shrinkable in objects)
    slices.close()


def test_objects_are_not_kept_alive_between_slices(step, clock):
    first, second = Long(clock, gives=[1, 1, 1], takes=0.01, size=10_000), ScriptedShrinkable(clock)
    witnesses = weakref.ref(first), weakref.ref(second)
    slices = step.slices(Level.WARNING, unlimited)
    next(slices)

    del first, second
    gc.collect()

    assert [witness() for witness in witnesses] == [None, None]
    assert sum(slices) == 0


def test_object_that_dies_during_the_pass_is_skipped(step, clock):
    other_objects = [ScriptedShrinkable(clock, gives=[1], size=100) for _ in range(3)]
    remover = ScriptedShrinkable(clock, size=10_000, does=other_objects.clear)

    freed_bytes = sum(step.slices(Level.WARNING, unlimited))

    assert freed_bytes == 10
    assert len(remover.calls) == 1


def test_object_may_unregister_itself_and_other_objects(step, clock):
    other_objects = [ScriptedShrinkable(clock, size=100) for _ in range(3)]
    leaver = ScriptedShrinkable(clock, size=10_000)
    leaver.does = lambda: [unregister(shrinkable) for shrinkable in (leaver, *other_objects)]

    list(step.slices(Level.WARNING, unlimited))

    assert len(leaver.calls) == 1
    assert not any(shrinkable.calls for shrinkable in other_objects)
    assert registered() == ()


def test_object_registered_during_a_pass_is_asked_next_time(step, clock):
    made = []
    maker = ScriptedShrinkable(clock, gives=[1, 1], size=10_000, does=lambda: made.append(ScriptedShrinkable(clock)))

    list(step.slices(Level.WARNING, unlimited))
    assert not made[0].calls
    maker.does = None
    list(step.slices(Level.WARNING, unlimited))

    assert len(made[0].calls) == 1


def test_object_that_calls_reclaim_is_throttled(step, clock):
    reclaimer = Reclaimer([step], read=lambda: 1000, clock=clock)
    inner = []
    shrinkable = ScriptedShrinkable(clock, does=lambda: inner.append(reclaimer.reclaim(Level.CRITICAL, stop_below=10)))

    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert inner == [None]
    assert result.steps[0].freed_bytes == 10
    assert len(shrinkable.calls) == 1


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError()])
def test_object_that_raises_is_logged_and_the_next_is_asked(step, clock, caplog, error):
    def fail():
        raise error

    broken, healthy = ScriptedShrinkable(clock, size=10_000, does=fail, name="prices"), ScriptedShrinkable(clock)

    freed_bytes = sum(step.slices(Level.WARNING, unlimited))

    assert freed_bytes == 10
    assert len(healthy.calls) == 1
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert "ScriptedShrinkable 'prices'" in logged.getMessage()
    statistics = step.statistics()
    assert (statistics.calls, statistics.failures, statistics.overruns) == (2, 1, 0)
    assert statistics.failing[0].name.endswith("ScriptedShrinkable 'prices'")
    assert len(broken.calls) == 1


def test_keyboard_interrupt_propagates(step, clock):
    def interrupt():
        raise KeyboardInterrupt

    shrinkable = ScriptedShrinkable(clock, does=interrupt)

    with pytest.raises(KeyboardInterrupt):
        list(step.slices(Level.WARNING, unlimited))
    assert len(shrinkable.calls) == 1


def test_object_is_skipped_for_a_while_after_five_failures(step, clock, caplog):
    def fail():
        raise ValueError

    broken = ScriptedShrinkable(clock, does=fail)
    for _ in range(8):
        list(step.slices(Level.WARNING, unlimited))
    assert len(broken.calls) == 5
    assert step.statistics().failing[0].is_left_out
    assert len(caplog.records) == 1

    clock.advance(300)
    for _ in range(3):
        list(step.slices(Level.WARNING, unlimited))
    assert len(broken.calls) == 6

    clock.advance(300)
    broken.does = None
    for _ in range(3):
        list(step.slices(Level.WARNING, unlimited))
    assert len(broken.calls) == 9
    assert not step.statistics().failing[0].is_left_out


def test_object_that_blocks_is_named_and_not_asked_again(step, clock):
    blocking = ScriptedShrinkable(clock, gives=[10] * 9, takes=2.0, size=10_000, name="remote")
    other = ScriptedShrinkable(clock)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert sum(slices) == 20
    assert (len(blocking.calls), len(other.calls)) == (1, 1)
    (failing,) = step.statistics().failing
    assert failing.name.endswith("ScriptedShrinkable 'remote'")
    assert (failing.overruns, failing.failures) == (1, 0)


def test_object_that_blocks_five_times_in_a_row_is_skipped(step, clock):
    blocking = ScriptedShrinkable(clock, gives=[10] * 9, takes=2.0)

    for _ in range(7):
        list(step.slices(Level.WARNING, unlimited))

    assert len(blocking.calls) == 5
    assert step.statistics().failing[0].is_left_out


def test_object_that_is_a_little_late_is_asked_again(step, clock):
    late = Long(clock, gives=[10] * 9, takes=0.03)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert sum(slices) == 90
    assert step.statistics().failing[0].overruns == len(late.calls) == 9


def test_object_that_is_very_late_is_not_asked_again(step, clock):
    late = ScriptedShrinkable(clock, gives=[10] * 9, takes=0.2)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert sum(slices) == 10
    assert len(late.calls) == 1
    assert not step.statistics().failing[0].is_left_out


@pytest.mark.parametrize("answer", [None, "12", -5, 1.5])
def test_object_that_returns_no_number_frees_zero_bytes(step, clock, answer):
    shrinkable = ScriptedShrinkable(clock, gives=[answer])

    assert sum(step.slices(Level.WARNING, unlimited)) == 0
    assert len(shrinkable.calls) == 1


def test_object_whose_attributes_raise_counts_as_a_failure(step, clock):
    class Unreadable(ScriptedShrinkable):
        is_shrinking = property(lambda self: 1 / 0)
        name = property(lambda self: 1 / 0, lambda self, value: None)

    unreadable = Unreadable(clock)

    list(step.slices(Level.WARNING, unlimited))

    statistics = step.statistics()
    assert statistics.failures == 1
    assert statistics.failing[0].name.endswith("Unreadable")
    assert len(unreadable.calls) == 1


def test_long_names_are_truncated(step, clock):
    shrinkable = ScriptedShrinkable(clock, takes=2.0, name="x" * 10_000)

    list(step.slices(Level.WARNING, unlimited))

    assert len(step.statistics().failing[0].name) < 300
    assert shrinkable.calls


def test_history_of_an_object_ends_with_it(step, clock):
    shrinkable = ScriptedShrinkable(clock, takes=2.0)
    list(step.slices(Level.WARNING, unlimited))
    assert len(step.statistics().failing) == 1

    del shrinkable

    assert step.statistics().failing == ()
    assert step.statistics().overruns == 1


def test_long_list_is_shortened_in_slices():
    step = ShrinkRegistered(slice_s=0.005)
    recent = BoundedList(range(400_000), 400_000)

    slices = list(step.slices(Level.WARNING, unlimited))

    assert len(recent) == 200_000
    assert not recent.is_shrinking
    assert sum(slices) >= 200_000 * 8


def test_bounded_history_is_registered_and_shrinks():
    @bounded_history(2000, meter="rss")
    def tick():
        return None

    for _ in range(600):
        tick()

    freed_bytes = sum(ShrinkRegistered().slices(Level.CRITICAL, unlimited))

    assert tick.history in registered()
    assert len(tick.history) == 50
    assert freed_bytes > 550 * 8


@pytest.mark.parametrize("slice_s", [-1, float("nan"), "5 ms", True])
def test_invalid_slice_is_refused(slice_s):
    with pytest.raises(ConfigError, match="slice_s"):
        ShrinkRegistered(slice_s=slice_s)


def test_no_history_is_kept_of_small_empty_objects(step, clock):
    objects = [ScriptedShrinkable(clock, gives=[]) for _ in range(3)]

    list(step.slices(Level.WARNING, unlimited))

    assert [registration.history for registration in registrations()] == [None] * 3
    assert all(shrinkable.calls for shrinkable in objects)


async def test_event_loop_runs_while_a_real_list_is_shortened():
    recent = BoundedList(([] for _ in range(1_000_000)), 1_000_000)
    reclaimer = Reclaimer([ShrinkRegistered(slice_s=0.001)], read=lambda: 1000, share=1.0)
    lengths = []

    task = asyncio.create_task(reclaimer.reclaim_async(Level.CRITICAL, stop_below=10))
    while not task.done():
        await asyncio.sleep(0)
        lengths.append(len(recent))

    assert lengths[-1] == 50
    assert len(set(lengths)) > 4  # a million items take more than ten milliseconds


async def test_many_registered_objects_take_many_slices():
    objects = [BoundedList([1, 2, 3], 5) for _ in range(30_000)]
    reclaimer = Reclaimer([ShrinkRegistered(slice_s=0.002)], read=lambda: 1000, share=1.0)
    turns = 0

    task = asyncio.create_task(reclaimer.reclaim_async(Level.CRITICAL, stop_below=10))
    while not task.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 5
    assert reclaimer.statistics().shrink.calls == len(objects)
