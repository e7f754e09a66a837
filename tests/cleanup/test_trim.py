"""Asking the registered things: order, slices, and everything that they may do to us."""

import asyncio
import gc
import logging
import weakref

import pytest

from memtools.cleanup import Reclaimer, ShrinkRegistered, register, registered, unregister
from memtools.cleanup._registry import places
from memtools.decorators import bounded_history
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.structures import BoundedList

pytestmark = pytest.mark.usefixtures("nobody_else")


class Thing:
    """Something on the register that does as it is told."""

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


class Long(Thing):
    """A thing with so much to give that it needs several slices."""

    @property
    def is_shrinking(self):
        return bool(self._gives)


def forever():
    return 1e9


@pytest.fixture
def trim(clock):
    return ShrinkRegistered(slice_s=0.01, clock=clock)


def test_all_are_asked_with_the_level_and_a_deadline_within_the_slice(trim, clock):
    things = [Thing(clock, takes=0.001) for _ in range(3)]

    slices = list(trim.slices(Level.CRITICAL, forever))

    assert slices == [30]
    for thing in things:
        ((level, left_s),) = thing.calls
        assert level is Level.CRITICAL
        assert 0.005 <= left_s <= 0.01


def test_with_nobody_on_the_register_there_is_nothing_to_do(trim):
    assert list(trim.slices(Level.WARNING, forever)) == []


def test_the_largest_are_asked_first(trim, clock):
    log = []
    things = [Thing(clock, size=size, log=log, name=str(size)) for size in (200, 12_800, 3_200, 800)]

    list(trim.slices(Level.WARNING, forever))

    assert log == ["12800", "3200", "800", "200"]
    assert len(things) == 4


def test_those_that_gave_nothing_are_asked_last_until_they_have_grown(trim, clock):
    log = []
    empty = Thing(clock, size=100_000, gives=[], log=log, name="empty")
    full = Thing(clock, size=100, gives=[10] * 9, log=log, name="full")

    for _ in range(2):
        list(trim.slices(Level.WARNING, forever))
    empty._size = 300_000
    list(trim.slices(Level.WARNING, forever))

    assert log == ["empty", "full", "full", "empty", "empty", "full"]
    assert len(full.calls) == 3


def test_what_a_thing_gave_last_time_counts_more_than_what_it_seems(trim, clock):
    log = []
    deep = Thing(clock, size=50, gives=[10**6] * 9, log=log, name="deep")
    flat = Thing(clock, size=5_000, gives=[5_000] * 9, log=log, name="flat")

    for _ in range(2):
        list(trim.slices(Level.WARNING, forever))

    assert log == ["flat", "deep", "deep", "flat"]
    assert len(deep.calls) == len(flat.calls)


def test_a_thing_that_cannot_say_its_size_is_asked_all_the_same(trim, clock):
    class Odd(Thing):
        def __sizeof__(self):
            raise LookupError

    odd = Odd(clock)

    assert list(trim.slices(Level.WARNING, forever)) == [10]
    assert len(odd.calls) == 1


def test_a_thing_that_is_not_done_is_asked_again_in_the_next_slice(trim, clock):
    long, other = Long(clock, gives=[5, 6, 7], takes=0.01, size=10_000), Thing(clock)

    slices = list(trim.slices(Level.WARNING, forever))

    assert slices == [5, 6, 7, 10]
    assert [left_s for _, left_s in long.calls] == [pytest.approx(0.01)] * 3
    assert len(other.calls) == 1


def test_without_a_word_from_the_thing_the_deadline_tells_that_it_is_not_done(trim, clock):
    slow, quick = Thing(clock, gives=[5, 6, 0], takes=0.011, size=10_000), Thing(clock, gives=[7, 8])

    slices = list(trim.slices(Level.WARNING, forever))

    assert slices == [5, 6, 0, 7]
    assert (len(slow.calls), len(quick.calls)) == (3, 1)


def test_a_thing_that_is_never_done_and_gives_nothing_is_given_up(trim, clock):
    class Endless(Thing):
        is_shrinking = True

    endless, other = Endless(clock, gives=[], size=10_000), Thing(clock)

    slices = list(trim.slices(Level.WARNING, forever))

    assert len(endless.calls) == 3
    assert sum(slices) == 10
    assert len(other.calls) == 1


def test_trimming_ends_when_time_is_up(trim, clock):
    long = Long(clock, gives=[1] * 100, takes=0.01)
    until = clock.now + 0.045

    slices = list(trim.slices(Level.WARNING, lambda: until - clock.now))

    assert len(slices) == 5
    assert long.calls[-1][1] == pytest.approx(0.005)


def test_called_as_a_step_it_ends_by_its_deadline(trim, clock):
    Thing(clock, takes=0.004)
    keep = [Thing(clock, gives=[1], takes=0.004) for _ in range(20)]

    freed_bytes = trim(Level.WARNING, clock.now + 0.02)

    assert 0 < freed_bytes < 30
    assert sum(len(thing.calls) for thing in keep) == 5


def test_many_small_things_share_a_slice(trim, clock):
    things = [Thing(clock, takes=0.001) for _ in range(10)]

    slices = list(trim.slices(Level.WARNING, forever))

    assert len(slices) in (2, 3)
    assert sum(slices) == 100
    assert all(len(thing.calls) == 1 for thing in things)


def test_finding_the_order_of_very_many_things_takes_slices_of_its_own(trim, clock):
    class Weighed(Thing):
        def __sizeof__(self):
            clock.advance(1e-5)
            return 100

    things = [Weighed(clock) for _ in range(5_000)]
    slices = trim.slices(Level.WARNING, forever)

    began = clock.now
    next(slices)

    assert clock.now - began <= 0.0101
    assert not any(thing.calls for thing in things)
    slices.close()


def test_nothing_is_kept_alive_between_two_slices(trim, clock):
    first, second = Long(clock, gives=[1, 1, 1], takes=0.01, size=10_000), Thing(clock)
    witnesses = weakref.ref(first), weakref.ref(second)
    slices = trim.slices(Level.WARNING, forever)
    next(slices)

    del first, second
    gc.collect()

    assert [witness() for witness in witnesses] == [None, None]
    assert sum(slices) == 0


def test_a_thing_that_dies_on_the_way_is_passed_over(trim, clock):
    others = [Thing(clock, gives=[1], size=100) for _ in range(3)]
    killer = Thing(clock, size=10_000, does=others.clear)

    freed_bytes = sum(trim.slices(Level.WARNING, forever))

    assert freed_bytes == 10
    assert len(killer.calls) == 1


def test_a_thing_may_leave_the_register_and_take_others_along(trim, clock):
    others = [Thing(clock, size=100) for _ in range(3)]
    leaver = Thing(clock, size=10_000)
    leaver.does = lambda: [unregister(thing) for thing in (leaver, *others)]

    list(trim.slices(Level.WARNING, forever))

    assert len(leaver.calls) == 1
    assert not any(thing.calls for thing in others)
    assert registered() == ()


def test_a_thing_may_register_another_which_is_asked_next_time(trim, clock):
    made = []
    maker = Thing(clock, gives=[1, 1], size=10_000, does=lambda: made.append(Thing(clock)))

    list(trim.slices(Level.WARNING, forever))
    assert not made[0].calls
    maker.does = None
    list(trim.slices(Level.WARNING, forever))

    assert len(made[0].calls) == 1


def test_a_thing_that_climbs_the_ladder_is_held_back(trim, clock):
    ladder = Reclaimer([trim], read=lambda: 1000, clock=clock)
    inner = []
    thing = Thing(clock, does=lambda: inner.append(ladder.reclaim(Level.CRITICAL, stop_below=10)))

    climb = ladder.reclaim(Level.WARNING, stop_below=10)

    assert inner == [None]
    assert climb.steps[0].freed_bytes == 10
    assert len(thing.calls) == 1


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError()])
def test_a_thing_that_raises_is_logged_and_counted_and_the_others_are_asked(trim, clock, caplog, error):
    def fail():
        raise error

    broken, healthy = Thing(clock, size=10_000, does=fail, name="prices"), Thing(clock)

    freed_bytes = sum(trim.slices(Level.WARNING, forever))

    assert freed_bytes == 10
    assert len(healthy.calls) == 1
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert "Thing 'prices'" in logged.getMessage()
    told = trim.statistics()
    assert (told.calls, told.failures, told.overruns) == (2, 1, 0)
    assert told.failing[0].name.endswith("Thing 'prices'")
    assert len(broken.calls) == 1


def test_cancellation_and_its_like_pass(trim, clock):
    def interrupt():
        raise KeyboardInterrupt

    thing = Thing(clock, does=interrupt)

    with pytest.raises(KeyboardInterrupt):
        list(trim.slices(Level.WARNING, forever))
    assert len(thing.calls) == 1


def test_a_thing_that_failed_five_times_in_a_row_is_left_out_and_tried_again(trim, clock, caplog):
    def fail():
        raise ValueError

    broken = Thing(clock, does=fail)
    for _ in range(8):
        list(trim.slices(Level.WARNING, forever))
    assert len(broken.calls) == 5
    assert trim.statistics().failing[0].is_left_out
    assert len(caplog.records) == 1

    clock.advance(300)
    for _ in range(3):
        list(trim.slices(Level.WARNING, forever))
    assert len(broken.calls) == 6

    clock.advance(300)
    broken.does = None
    for _ in range(3):
        list(trim.slices(Level.WARNING, forever))
    assert len(broken.calls) == 9
    assert not trim.statistics().failing[0].is_left_out


def test_a_thing_that_blocks_is_counted_and_named_and_not_asked_again_in_this_climb(trim, clock):
    blocking = Thing(clock, gives=[10] * 9, takes=2.0, size=10_000, name="remote")
    other = Thing(clock)

    slices = list(trim.slices(Level.WARNING, forever))

    assert sum(slices) == 20
    assert (len(blocking.calls), len(other.calls)) == (1, 1)
    (trouble,) = trim.statistics().failing
    assert trouble.name.endswith("Thing 'remote'")
    assert (trouble.overruns, trouble.failures) == (1, 0)


def test_a_thing_that_blocks_five_times_in_a_row_is_left_out(trim, clock):
    blocking = Thing(clock, gives=[10] * 9, takes=2.0)

    for _ in range(7):
        list(trim.slices(Level.WARNING, forever))

    assert len(blocking.calls) == 5
    assert trim.statistics().failing[0].is_left_out


def test_a_thing_that_is_a_little_late_is_counted_and_asked_on(trim, clock):
    late = Long(clock, gives=[10] * 9, takes=0.03)

    slices = list(trim.slices(Level.WARNING, forever))

    assert sum(slices) == 90
    assert trim.statistics().failing[0].overruns == len(late.calls) == 9


def test_a_thing_that_is_much_too_late_and_does_not_say_that_it_is_not_done_is_not_asked_on(trim, clock):
    late = Thing(clock, gives=[10] * 9, takes=0.2)

    slices = list(trim.slices(Level.WARNING, forever))

    assert sum(slices) == 10
    assert len(late.calls) == 1
    assert not trim.statistics().failing[0].is_left_out


@pytest.mark.parametrize("answer", [None, "12", -5, 1.5])
def test_a_thing_that_returns_no_bytes_is_taken_for_one_that_knows_of_none(trim, clock, answer):
    thing = Thing(clock, gives=[answer])

    assert sum(trim.slices(Level.WARNING, forever)) == 0
    assert len(thing.calls) == 1


def test_a_thing_whose_attributes_raise_harms_nobody(trim, clock):
    class Odd(Thing):
        is_shrinking = property(lambda self: 1 / 0)
        name = property(lambda self: 1 / 0, lambda self, value: None)

    odd = Odd(clock)

    list(trim.slices(Level.WARNING, forever))

    told = trim.statistics()
    assert told.failures == 1
    assert told.failing[0].name.endswith("Odd")
    assert len(odd.calls) == 1


def test_long_names_are_cut(trim, clock):
    thing = Thing(clock, takes=2.0, name="x" * 10_000)

    list(trim.slices(Level.WARNING, forever))

    assert len(trim.statistics().failing[0].name) < 300
    assert thing.calls


def test_what_is_known_of_a_thing_ends_with_it(trim, clock):
    thing = Thing(clock, takes=2.0)
    list(trim.slices(Level.WARNING, forever))
    assert len(trim.statistics().failing) == 1

    del thing

    assert trim.statistics().failing == ()
    assert trim.statistics().overruns == 1


def test_long_lists_are_shortened_slice_by_slice_by_level():
    trim = ShrinkRegistered(slice_s=0.005)
    recent = BoundedList(range(400_000), 400_000)

    slices = list(trim.slices(Level.WARNING, forever))

    assert len(recent) == 200_000
    assert not recent.is_shrinking
    assert sum(slices) >= 200_000 * 8


def test_histories_are_on_the_register_and_give_back():
    @bounded_history(2000, meter="rss")
    def tick():
        return None

    for _ in range(600):
        tick()

    freed_bytes = sum(ShrinkRegistered().slices(Level.CRITICAL, forever))

    assert tick.history in registered()
    assert len(tick.history) == 50
    assert freed_bytes > 550 * 8


@pytest.mark.parametrize("slice_s", [-1, float("nan"), "5 ms", True])
def test_slice_that_makes_no_sense_is_refused(slice_s):
    with pytest.raises(ConfigError, match="slice_s"):
        ShrinkRegistered(slice_s=slice_s)


def test_nothing_is_kept_of_small_things_that_have_nothing_to_give(trim, clock):
    things = [Thing(clock, gives=[]) for _ in range(3)]

    list(trim.slices(Level.WARNING, forever))

    assert [place.past for place in places()] == [None] * 3
    assert all(thing.calls for thing in things)


async def test_the_loop_has_its_turn_while_a_real_list_is_shortened():
    recent = BoundedList(([] for _ in range(1_000_000)), 1_000_000)
    ladder = Reclaimer([ShrinkRegistered()], read=lambda: 1000, share=1.0)
    lengths = []

    task = asyncio.create_task(ladder.reclaim_async(Level.CRITICAL, stop_below=10))
    while not task.done():
        await asyncio.sleep(0)
        lengths.append(len(recent))

    assert lengths[-1] == 50
    assert len(set(lengths)) > 4  # a million items take 20 ms at least, and a slice lasts 5


async def test_many_registered_things_are_asked_in_many_slices():
    things = [BoundedList([1, 2, 3], 5) for _ in range(30_000)]
    ladder = Reclaimer([ShrinkRegistered(slice_s=0.002)], read=lambda: 1000, share=1.0)
    turns = 0

    task = asyncio.create_task(ladder.reclaim_async(Level.CRITICAL, stop_below=10))
    while not task.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 5
    assert ladder.statistics().shrink.calls == len(things)
