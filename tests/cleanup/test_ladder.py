"""The ladder: order, exits, cooldowns, the share of wall time, who may climb."""

import asyncio
import gc
import os
import threading
import warnings
import weakref

import pytest

from memtools.cleanup import Reclaimer, SlicedStep, default_steps
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, subscribe
from memtools.readings import Level, resident_bytes


@pytest.fixture
def ladder(clock, usage):
    """Return a maker of ladders: no jitter, no real time."""

    def make(*steps, **settings):
        settings = {"clock": clock, "random": lambda: 0.0, "read": usage} | settings
        return Reclaimer(steps, **settings)

    return make


class Sliced:
    """A step of as many slices as there are entries: (bytes freed, seconds taken)."""

    name = "sliced"
    least = Level.WARNING

    def __init__(self, clock, usage, *slices):
        self._clock = clock
        self._usage = usage
        self._slices = slices
        self.done = 0
        self.is_closed = False

    def __call__(self, level, deadline):
        raise AssertionError("the ladder walks the slices")

    def slices(self, level, left):
        try:
            for frees, takes in self._slices:
                if left() <= 0:
                    return
                self._clock.advance(takes)
                self._usage.used_bytes -= frees
                self.done += 1
                yield frees
        finally:
            self.is_closed = True


def test_ladder_stops_as_soon_as_usage_is_low_enough(ladder, step):
    first, second, third = step("first", frees=100), step("second", frees=200), step("third", frees=400)

    climb = ladder(first, second, third).reclaim(Level.CRITICAL, stop_below=750)

    assert [taken.name for taken in climb.steps] == ["first", "second"]
    assert (climb.before_bytes, climb.after_bytes) == (1000, 700)
    assert climb.is_effective
    assert not climb.exhausted
    assert third.calls == []


def test_the_exit_itself_is_not_low_enough(ladder, step):
    climb = ladder(step("first", frees=100), step("second")).reclaim(Level.CRITICAL, stop_below=900)

    assert [taken.name for taken in climb.steps] == ["first", "second"]
    assert not climb.is_effective


def test_ladder_that_was_not_enough_says_that_it_reached_its_end(ladder, step):
    climb = ladder(step("first", frees=100, takes=0.1)).reclaim(Level.CRITICAL, stop_below=10)

    assert (climb.is_effective, climb.exhausted) == (False, True)
    assert climb.duration_s == pytest.approx(0.1)
    assert climb.steps[0].freed_bytes == 100
    assert climb.steps[0].duration_s == pytest.approx(0.1)


def test_nothing_is_done_where_usage_is_low_already(ladder, step, usage):
    first = step("first")

    with Listening() as heard:
        climb = ladder(first).reclaim(Level.WARNING, stop_below=1001)

    assert climb.is_effective
    assert climb.steps == ()
    assert first.calls == []
    assert heard == []
    assert usage.reads == 1


class Listening:
    """Collect the events of a block."""

    def __enter__(self):
        self._heard = []
        self._subscription = subscribe(self._heard.append)
        return self._heard

    def __exit__(self, *error):
        self._subscription.close()


def test_usage_is_read_again_after_each_step(ladder, step, usage):
    ladder(step("first"), step("second"), step("third")).reclaim(Level.WARNING, stop_below=10)

    assert usage.reads == 4


def test_steps_of_a_higher_level_are_passed_over(ladder, step):
    low, high = step("low", least=Level.WARNING), step("high", least=Level.CRITICAL)

    climb = ladder(low, high).reclaim(Level.WARNING, stop_below=10)

    assert [taken.name for taken in climb.steps] == ["low"]
    assert climb.exhausted


def test_step_is_told_the_level_and_a_deadline_that_the_share_can_pay(ladder, step, clock):
    first = step("first")

    ladder(first, share=0.1).reclaim(Level.CRITICAL, stop_below=10)

    (level, deadline) = first.calls[0]
    assert level is Level.CRITICAL
    assert deadline == pytest.approx(clock.now + 0.1 * 15)


def test_what_was_done_is_told_once_and_in_order(ladder, step):
    climbing = ladder(step("first", frees=100, takes=0.01), step("second", takes=0.02))

    with Listening() as heard:
        climbing.reclaim(Level.CRITICAL, stop_below=10)

    (event,) = heard
    assert isinstance(event, CleanupEnded)
    assert (event.level, event.before_bytes, event.after_bytes) == (Level.CRITICAL, 1000, 900)
    assert event.steps == (("first", 100, pytest.approx(0.01)), ("second", 0, pytest.approx(0.02)))
    assert event.duration_s == pytest.approx(0.03)


def test_a_listener_may_climb_and_is_held_back(ladder, step):
    climbing = ladder(step("first"))
    again = []

    with subscribe(lambda event: again.append(climbing.reclaim(Level.WARNING, stop_below=10))):
        climbing.reclaim(Level.WARNING, stop_below=10)

    assert again == [None]


def test_step_rests_for_the_cooldown_and_the_ladder_is_held_back(ladder, step, clock):
    first = step("first")
    climbing = ladder(first, cooldown=15.0)
    climbing.reclaim(Level.WARNING, stop_below=10)

    clock.advance(14.9)
    early = climbing.reclaim(Level.WARNING, stop_below=10)
    clock.advance(0.1)
    late = climbing.reclaim(Level.WARNING, stop_below=10)

    assert early is None
    assert late is not None
    assert climbing.statistics().held_back == 1


def test_each_step_rests_by_itself(ladder, step, clock):
    first, second = step("first", frees=100), step("second", frees=100)
    climbing = ladder(first, second)
    climbing.reclaim(Level.WARNING, stop_below=950)

    climb = climbing.reclaim(Level.WARNING, stop_below=50)

    assert [taken.name for taken in climb.steps] == ["second"]


def test_a_higher_level_does_not_wait_for_the_cooldown(ladder, step):
    climbing = ladder(step("first"))
    climbing.reclaim(Level.WARNING, stop_below=10)

    assert climbing.reclaim(Level.CRITICAL, stop_below=10) is not None
    assert climbing.reclaim(Level.CRITICAL, stop_below=10) is None
    assert climbing.reclaim(Level.WARNING, stop_below=10) is None


def test_cooldown_is_never_shorter_and_up_to_a_fifth_longer_by_chance(ladder, step, clock):
    climbing = ladder(step("first"), cooldown=10.0, random=lambda: 1.0)
    climbing.reclaim(Level.WARNING, stop_below=10)

    clock.advance(11.9)
    early = climbing.reclaim(Level.WARNING, stop_below=10)
    clock.advance(0.1)
    late = climbing.reclaim(Level.WARNING, stop_below=10)

    assert (early is None, late is None) == (True, False)


def test_climb_ends_when_the_share_of_wall_time_is_used_up(ladder, step):
    first, second = step("first", takes=1.0), step("second")

    climb = ladder(first, second, share=0.05).reclaim(Level.CRITICAL, stop_below=10)

    assert [taken.name for taken in climb.steps] == ["first"]
    assert not climb.exhausted
    assert second.calls == []


def test_what_was_overspent_is_paid_back_before_the_next_climb(ladder, step, clock):
    climbing = ladder(step("first", takes=1.0), share=0.05, cooldown=0)
    climbing.reclaim(Level.CRITICAL, stop_below=10)  # 0.75 s were granted

    clock.advance(14.0 + 5.0)
    early = climbing.reclaim(Level.CRITICAL, stop_below=10)
    clock.advance(0.1)
    late = climbing.reclaim(Level.CRITICAL, stop_below=10)

    assert (early is None, late is None) == (True, False)


@pytest.mark.parametrize("takes", [0.001, 0.2, 0.75, 4.0])
@pytest.mark.parametrize("cooldown", [0.0, 15.0])
def test_an_hour_of_permanent_overload_costs_five_percent_at_most(ladder, step, clock, takes, cooldown):
    climbing = ladder(*(step(str(number), takes=takes) for number in range(4)), cooldown=cooldown)
    began = clock.now

    while clock.now < began + 3600:
        climbing.reclaim(Level.CRITICAL, stop_below=10)
        clock.advance(0.25)

    spent_s = climbing.statistics().spent_s
    assert 0 < spent_s <= 0.05 * (clock.now - began) + takes
    assert climbing.statistics().passes > 40


def test_slices_are_walked_and_usage_is_read_after_each(ladder, clock, usage):
    sliced = Sliced(clock, usage, (100, 0.004), (100, 0.005), (100, 0.003))

    climb = ladder(sliced).reclaim(Level.WARNING, stop_below=850)

    assert isinstance(sliced, SlicedStep)
    assert sliced.done == 2
    assert sliced.is_closed
    assert climb.steps[0].freed_bytes == 200
    assert climb.steps[0].duration_s == pytest.approx(0.009)
    assert climb.is_effective


def test_step_without_a_single_slice_was_not_taken(ladder, clock, usage, step):
    idle, busy = Sliced(clock, usage), step("busy")
    climbing = ladder(idle, busy)

    climb = climbing.reclaim(Level.WARNING, stop_below=10)

    assert [taken.name for taken in climb.steps] == ["busy"]
    assert [told.taken for told in climbing.statistics().steps] == [0, 1]


def test_ladder_that_found_nothing_to_do_was_held_back(ladder, clock, usage):
    assert ladder(Sliced(clock, usage)).reclaim(Level.WARNING, stop_below=10) is None


def test_a_step_that_ran_out_of_time_keeps_the_end_from_being_reached(ladder, clock, usage, step):
    sliced = Sliced(clock, usage, *[(0, 0.1)] * 20)
    climbing = ladder(sliced, step("second"), cooldown=30.0)
    cut_short = climbing.reclaim(Level.WARNING, stop_below=10)

    clock.advance(20)  # time for the second step, while the first still rests
    climb = climbing.reclaim(Level.WARNING, stop_below=10)

    assert sliced.done == 8
    assert not cut_short.exhausted
    assert [taken.name for taken in climb.steps] == ["second"]
    assert not climb.exhausted


def test_statistics_say_how_each_step_fared(ladder, clock, usage, step):
    sliced = Sliced(clock, usage, (10, 0.004), (20, 0.009))
    climbing = ladder(sliced, step("second", frees=500, takes=0.1))
    climbing.reclaim(Level.WARNING, stop_below=500)
    climbing.reclaim(Level.WARNING, stop_below=400)

    told = climbing.statistics()

    assert (told.passes, told.effective, told.held_back) == (1, 1, 1)
    assert told.freed_bytes == 530
    assert told.spent_s == pytest.approx(0.113)
    assert told.credit_s == pytest.approx(0.05 * 15 - 0.113)
    first, second = told.steps
    assert (first.name, first.taken, first.freed_bytes) == ("sliced", 1, 30)
    assert first.longest_slice_s == pytest.approx(0.009)
    assert second.spent_s == pytest.approx(0.1)
    assert told.trim is None


async def test_the_loop_has_its_turn_between_steps_and_between_slices(ladder, clock, usage, step):
    sliced = Sliced(clock, usage, (0, 0.005), (0, 0.005), (0, 0.005))
    turns = []

    async def others():
        while True:
            turns.append(sliced.done)
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    climb = await ladder(sliced, step("second")).reclaim_async(Level.WARNING, stop_below=10)
    other.cancel()

    assert turns[:4] == [1, 2, 3, 3]
    assert climb.exhausted


async def test_turns_of_others_are_not_charged_to_the_share(ladder, clock, usage):
    sliced = Sliced(clock, usage, *[(0, 0.1)] * 5)
    climbing = ladder(sliced)

    async def others():
        while True:
            clock.advance(1.0)
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    climb = await climbing.reclaim_async(Level.WARNING, stop_below=10)
    other.cancel()

    assert sliced.done == 5
    assert climb.steps[0].duration_s == pytest.approx(0.5)
    assert climb.duration_s >= 5
    assert climbing.statistics().spent_s == pytest.approx(0.5)


async def test_climb_that_is_cancelled_ends_at_once_and_leaves_the_ladder_free(ladder, clock, usage):
    sliced = Sliced(clock, usage, *[(0, 0.001)] * 1000)
    climbing = ladder(sliced, cooldown=0)
    task = asyncio.create_task(climbing.reclaim_async(Level.WARNING, stop_below=10))
    for _ in range(5):
        await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert sliced.is_closed
    assert sliced.done < 10
    assert climbing.reclaim(Level.WARNING, stop_below=2000) is not None


async def test_two_tasks_that_climb_at_once_are_one_climb(ladder, clock, usage):
    climbing = ladder(Sliced(clock, usage, *[(0, 0.001)] * 5))

    climbs = await asyncio.gather(*(climbing.reclaim_async(Level.WARNING, stop_below=10) for _ in range(2)))

    assert [climb is None for climb in climbs] == [False, True]


def test_two_threads_that_climb_at_once_are_one_climb(ladder, step):
    began, may_end = threading.Event(), threading.Event()

    def wait():
        began.set()
        assert may_end.wait(10)

    climbing = ladder(step("slow", does=wait))
    climbs = []
    thread = threading.Thread(target=lambda: climbs.append(climbing.reclaim(Level.WARNING, stop_below=10)))
    thread.start()
    assert began.wait(10)

    second = climbing.reclaim(Level.CRITICAL, stop_below=10)
    may_end.set()
    thread.join()

    assert second is None
    assert climbs[0] is not None


def test_step_that_climbs_the_same_ladder_is_held_back(ladder, step):
    inner = []
    first = step("first", does=lambda: inner.append(climbing.reclaim(Level.CRITICAL, stop_below=10)))
    climbing = ladder(first)

    climb = climbing.reclaim(Level.WARNING, stop_below=10)

    assert inner == [None]
    assert len(climb.steps) == 1


def test_read_that_fails_is_the_callers_and_leaves_the_ladder_free(clock, step):
    answers = iter([OSError("no /proc"), 1000, 1000])

    def read():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    climbing = Reclaimer([step("first")], read=read, clock=clock)

    with pytest.raises(OSError, match="no /proc"):
        climbing.reclaim(Level.WARNING, stop_below=10)
    assert climbing.reclaim(Level.WARNING, stop_below=10) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("who", ["another thread", "the step itself"])
def test_child_may_climb_whoever_was_climbing_when_it_was_forked(ladder, step, who):
    exits = []
    forks_left = [True]

    def fork():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # on purpose: other threads are running
            child = os.fork()
        if child == 0:
            os._exit(0 if climbing.reclaim(Level.CRITICAL, stop_below=10) is not None else 1)
        exits.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def fork_once():
        if not forks_left:
            return
        forks_left.clear()
        if who == "the step itself":
            fork()
            return
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    climbing = ladder(step("forks", does=fork_once), step("second"), cooldown=0)

    climb = climbing.reclaim(Level.WARNING, stop_below=10)

    assert exits == [0]
    assert len(climb.steps) == 2


def test_ladder_is_collected_like_anything_else(ladder, step):
    climbing = ladder(step("first"))
    witness = weakref.ref(climbing)

    del climbing
    gc.collect()

    assert witness() is None


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), True, "5%"])
def test_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(ConfigError, match="share"):
        Reclaimer([], read=resident_bytes, share=share)


@pytest.mark.parametrize("cooldown", [-1, float("nan"), "15 s", True])
def test_cooldown_that_makes_no_sense_is_refused(cooldown):
    with pytest.raises(ConfigError, match="cooldown"):
        Reclaimer([], read=resident_bytes, cooldown=cooldown)


@pytest.mark.parametrize("wrong", [len, "trim", None])
def test_what_is_no_step_is_refused(wrong):
    with pytest.raises(ConfigError, match="steps"):
        Reclaimer([wrong], read=resident_bytes)


def test_steps_of_the_house_climb_a_real_process():
    climbing = Reclaimer(default_steps(), read=resident_bytes)

    climb = climbing.reclaim(Level.CRITICAL, stop_below=0)

    names = [taken.name for taken in climb.steps]
    assert {"collect young", "collect all"} <= set(names)
    assert names == sorted(names, key=["trim", "collect young", "collect all", "trim heap"].index)
    assert climb.exhausted
