"""The reclaimer: order, targets, cooldowns, the share of wall time, concurrent calls."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref

import pytest

from memtools.cleanup import Reclaimer, SlicedStep
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, subscribe
from memtools.readings import Level, resident_bytes


@pytest.fixture
def make_reclaimer(clock, usage):
    """Return a function that makes reclaimers without jitter and real time."""

    def make(*steps, **settings):
        settings = {"clock": clock, "random": lambda: 0.0, "read": usage} | settings
        return Reclaimer(steps, **settings)

    return make


class Sliced:
    """A step of as many slices as there are entries: (bytes freed, seconds taken)."""

    name = "sliced"
    min_level = Level.WARNING

    def __init__(self, clock, usage, *slices):
        self._clock = clock
        self._usage = usage
        self._slices = slices
        self.done = 0
        self.is_closed = False

    def __call__(self, level, deadline):
        raise AssertionError("the reclaimer iterates over the slices")

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


def test_pass_stops_when_usage_is_below_the_target(make_reclaimer, step):
    first, second, third = step("first", frees=100), step("second", frees=200), step("third", frees=400)

    result = make_reclaimer(first, second, third).reclaim(Level.CRITICAL, stop_below=750)

    assert [step.name for step in result.steps] == ["first", "second"]
    assert (result.before_bytes, result.after_bytes) == (1000, 700)
    assert result.is_effective
    assert not result.exhausted
    assert third.calls == []


def test_usage_equal_to_the_target_is_not_below_it(make_reclaimer, step):
    result = make_reclaimer(step("first", frees=100), step("second")).reclaim(Level.CRITICAL, stop_below=900)

    assert [step.name for step in result.steps] == ["first", "second"]
    assert not result.is_effective


def test_pass_that_frees_too_little_is_exhausted(make_reclaimer, step):
    result = make_reclaimer(step("first", frees=100, takes=0.1)).reclaim(Level.CRITICAL, stop_below=10)

    assert (result.is_effective, result.exhausted) == (False, True)
    assert result.duration_s == pytest.approx(0.1)
    assert result.steps[0].freed_bytes == 100
    assert result.steps[0].duration_s == pytest.approx(0.1)


def test_no_step_runs_when_usage_is_below_the_target_already(make_reclaimer, step, usage):
    first = step("first")

    with RecordedEvents() as events:
        result = make_reclaimer(first).reclaim(Level.WARNING, stop_below=1001)

    assert result.is_effective
    assert result.steps == ()
    assert first.calls == []
    assert events == []
    assert usage.reads == 1


class RecordedEvents:
    """Collect the events of a block."""

    def __enter__(self):
        self._events = []
        self._subscription = subscribe(self._events.append)
        return self._events

    def __exit__(self, *error):
        self._subscription.close()


def test_usage_is_read_again_after_each_step(make_reclaimer, step, usage):
    make_reclaimer(step("first"), step("second"), step("third")).reclaim(Level.WARNING, stop_below=10)

    assert usage.reads == 4


def test_step_with_a_higher_min_level_does_not_run(make_reclaimer, step):
    low, high = step("low", min_level=Level.WARNING), step("high", min_level=Level.CRITICAL)

    result = make_reclaimer(low, high).reclaim(Level.WARNING, stop_below=10)

    assert [step.name for step in result.steps] == ["low"]
    assert result.exhausted


def test_step_gets_the_level_and_a_deadline_within_the_budget(make_reclaimer, step, clock):
    first = step("first")

    make_reclaimer(first, share=0.1).reclaim(Level.CRITICAL, stop_below=10)

    (level, deadline) = first.calls[0]
    assert level is Level.CRITICAL
    assert deadline == pytest.approx(clock.now + 0.1 * 15)


def test_pass_emits_one_event_with_the_steps_in_order(make_reclaimer, step):
    reclaimer = make_reclaimer(step("first", frees=100, takes=0.01), step("second", takes=0.02))

    with RecordedEvents() as events:
        reclaimer.reclaim(Level.CRITICAL, stop_below=10)

    (event,) = events
    assert isinstance(event, CleanupEnded)
    assert (event.level, event.before_bytes, event.after_bytes) == (Level.CRITICAL, 1000, 900)
    assert event.steps == (("first", 100, pytest.approx(0.01)), ("second", 0, pytest.approx(0.02)))
    assert event.duration_s == pytest.approx(0.03)


def test_hook_that_reclaims_is_throttled(make_reclaimer, step):
    reclaimer = make_reclaimer(step("first"))
    nested = []

    with subscribe(lambda _: nested.append(reclaimer.reclaim(Level.WARNING, stop_below=10))):
        reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert nested == [None]


def test_reclaim_during_the_cooldown_is_throttled(make_reclaimer, step, clock):
    first = step("first")
    reclaimer = make_reclaimer(first, cooldown=15.0)
    reclaimer.reclaim(Level.WARNING, stop_below=10)

    clock.advance(14.9)
    early = reclaimer.reclaim(Level.WARNING, stop_below=10)
    clock.advance(0.1)
    late = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert early is None
    assert late is not None
    assert reclaimer.statistics().throttled == 1


def test_each_step_has_its_own_cooldown(make_reclaimer, step, clock):
    first, second = step("first", frees=100), step("second", frees=100)
    reclaimer = make_reclaimer(first, second)
    reclaimer.reclaim(Level.WARNING, stop_below=950)

    result = reclaimer.reclaim(Level.WARNING, stop_below=50)

    assert [step.name for step in result.steps] == ["second"]


def test_higher_level_does_not_wait_for_the_cooldown(make_reclaimer, step):
    reclaimer = make_reclaimer(step("first"))
    reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert reclaimer.reclaim(Level.CRITICAL, stop_below=10) is not None
    assert reclaimer.reclaim(Level.CRITICAL, stop_below=10) is None
    assert reclaimer.reclaim(Level.WARNING, stop_below=10) is None


def test_cooldown_is_up_to_a_fifth_longer_at_random(make_reclaimer, step, clock):
    reclaimer = make_reclaimer(step("first"), cooldown=10.0, random=lambda: 1.0)
    reclaimer.reclaim(Level.WARNING, stop_below=10)

    clock.advance(11.9)
    early = reclaimer.reclaim(Level.WARNING, stop_below=10)
    clock.advance(0.1)
    late = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert (early is None, late is None) == (True, False)


def test_pass_ends_when_the_share_of_wall_time_is_used_up(make_reclaimer, step):
    first, second = step("first", takes=1.0), step("second")

    result = make_reclaimer(first, second, share=0.05).reclaim(Level.CRITICAL, stop_below=10)

    assert [step.name for step in result.steps] == ["first"]
    assert not result.exhausted
    assert second.calls == []


def test_overdraft_is_paid_back_before_the_next_pass(make_reclaimer, step, clock):
    reclaimer = make_reclaimer(step("first", takes=1.0), share=0.05, cooldown=0)
    reclaimer.reclaim(Level.CRITICAL, stop_below=10)  # 0.75 s were granted

    clock.advance(14.0 + 5.0)
    early = reclaimer.reclaim(Level.CRITICAL, stop_below=10)
    clock.advance(0.1)
    late = reclaimer.reclaim(Level.CRITICAL, stop_below=10)

    assert (early is None, late is None) == (True, False)


@pytest.mark.parametrize("takes", [0.001, 0.2, 0.75, 4.0])
@pytest.mark.parametrize("cooldown", [0.0, 15.0])
def test_hour_of_overload_costs_at_most_five_percent(make_reclaimer, step, clock, takes, cooldown):
    reclaimer = make_reclaimer(*(step(str(number), takes=takes) for number in range(4)), cooldown=cooldown)
    began = clock.now

    while clock.now < began + 3600:
        reclaimer.reclaim(Level.CRITICAL, stop_below=10)
        clock.advance(0.25)

    spent_s = reclaimer.statistics().spent_s
    assert 0 < spent_s <= 0.05 * (clock.now - began) + takes
    assert reclaimer.statistics().passes > 40


def test_usage_is_read_after_each_slice(make_reclaimer, clock, usage):
    sliced = Sliced(clock, usage, (100, 0.004), (100, 0.005), (100, 0.003))

    result = make_reclaimer(sliced).reclaim(Level.WARNING, stop_below=850)

    assert isinstance(sliced, SlicedStep)
    assert sliced.done == 2
    assert sliced.is_closed
    assert result.steps[0].freed_bytes == 200
    assert result.steps[0].duration_s == pytest.approx(0.009)
    assert result.is_effective


def test_step_without_a_slice_does_not_count_as_run(make_reclaimer, clock, usage, step):
    idle, busy = Sliced(clock, usage), step("busy")
    reclaimer = make_reclaimer(idle, busy)

    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert [step.name for step in result.steps] == ["busy"]
    assert [step.runs for step in reclaimer.statistics().steps] == [0, 1]


def test_pass_in_which_no_step_ran_is_throttled(make_reclaimer, clock, usage):
    assert make_reclaimer(Sliced(clock, usage)).reclaim(Level.WARNING, stop_below=10) is None


def test_pass_after_an_unfinished_step_is_not_exhausted(make_reclaimer, clock, usage, step):
    sliced = Sliced(clock, usage, *[(0, 0.1)] * 20)
    reclaimer = make_reclaimer(sliced, step("second"), cooldown=30.0)
    cut_short = reclaimer.reclaim(Level.WARNING, stop_below=10)

    clock.advance(20)  # time for the second step, while the first still cools down
    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert sliced.done == 8
    assert not cut_short.exhausted
    assert [step.name for step in result.steps] == ["second"]
    assert not result.exhausted


def test_statistics_count_passes_and_steps(make_reclaimer, clock, usage, step):
    sliced = Sliced(clock, usage, (10, 0.004), (20, 0.009))
    reclaimer = make_reclaimer(sliced, step("second", frees=500, takes=0.1))
    reclaimer.reclaim(Level.WARNING, stop_below=500)
    reclaimer.reclaim(Level.WARNING, stop_below=400)

    statistics = reclaimer.statistics()

    assert (statistics.passes, statistics.effective, statistics.throttled) == (1, 1, 1)
    assert statistics.freed_bytes == 530
    assert statistics.spent_s == pytest.approx(0.113)
    assert statistics.budget_left_s == pytest.approx(0.05 * 15 - 0.113)
    first, second = statistics.steps
    assert (first.name, first.runs, first.freed_bytes) == ("sliced", 1, 30)
    assert first.longest_slice_s == pytest.approx(0.009)
    assert second.spent_s == pytest.approx(0.1)
    assert statistics.shrink is None


async def test_event_loop_runs_between_steps_and_slices(make_reclaimer, clock, usage, step):
    sliced = Sliced(clock, usage, (0, 0.005), (0, 0.005), (0, 0.005))
    turns = []

    async def other_task():
        while True:
            turns.append(sliced.done)
            await asyncio.sleep(0)

    other = asyncio.create_task(other_task())
    result = await make_reclaimer(sliced, step("second")).reclaim_async(Level.WARNING, stop_below=10)
    other.cancel()

    assert turns[:4] == [1, 2, 3, 3]
    assert result.exhausted


async def test_time_of_other_tasks_is_not_charged_to_the_budget(make_reclaimer, clock, usage):
    sliced = Sliced(clock, usage, *[(0, 0.1)] * 5)
    reclaimer = make_reclaimer(sliced)

    async def other_task():
        while True:
            clock.advance(1.0)
            await asyncio.sleep(0)

    other = asyncio.create_task(other_task())
    result = await reclaimer.reclaim_async(Level.WARNING, stop_below=10)
    other.cancel()

    assert sliced.done == 5
    assert result.steps[0].duration_s == pytest.approx(0.5)
    assert result.duration_s >= 5
    assert reclaimer.statistics().spent_s == pytest.approx(0.5)


async def test_cancelled_pass_ends_at_once_and_releases_the_lock(make_reclaimer, clock, usage):
    sliced = Sliced(clock, usage, *[(0, 0.001)] * 1000)
    reclaimer = make_reclaimer(sliced, cooldown=0)
    task = asyncio.create_task(reclaimer.reclaim_async(Level.WARNING, stop_below=10))
    for _ in range(5):
        await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert sliced.is_closed
    assert sliced.done < 10
    assert reclaimer.reclaim(Level.WARNING, stop_below=2000) is not None


async def test_second_task_that_reclaims_meanwhile_is_throttled(make_reclaimer, clock, usage):
    reclaimer = make_reclaimer(Sliced(clock, usage, *[(0, 0.001)] * 5))

    results = await asyncio.gather(*(reclaimer.reclaim_async(Level.WARNING, stop_below=10) for _ in range(2)))

    assert [result is None for result in results] == [False, True]


def test_second_thread_that_reclaims_meanwhile_is_throttled(make_reclaimer, step):
    began, may_end = threading.Event(), threading.Event()

    def wait():
        began.set()
        assert may_end.wait(10)

    reclaimer = make_reclaimer(step("slow", does=wait))
    results = []
    thread = threading.Thread(target=lambda: results.append(reclaimer.reclaim(Level.WARNING, stop_below=10)))
    thread.start()
    assert began.wait(10)

    second = reclaimer.reclaim(Level.CRITICAL, stop_below=10)
    may_end.set()
    thread.join()

    assert second is None
    assert results[0] is not None


def test_step_that_calls_reclaim_is_throttled(make_reclaimer, step):
    inner = []
    first = step("first", does=lambda: inner.append(reclaimer.reclaim(Level.CRITICAL, stop_below=10)))
    reclaimer = make_reclaimer(first)

    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert inner == [None]
    assert len(result.steps) == 1


def test_error_of_read_is_raised_and_the_lock_released(clock, step):
    answers = iter([OSError("no /proc"), 1000, 1000])

    def read():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    reclaimer = Reclaimer([step("first")], read=read, clock=clock)

    with pytest.raises(OSError, match="no /proc"):
        reclaimer.reclaim(Level.WARNING, stop_below=10)
    assert reclaimer.reclaim(Level.WARNING, stop_below=10) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("forked_by", ["another thread", "the step itself"])
def test_child_forked_during_a_pass_can_reclaim(make_reclaimer, step, forked_by):
    exits = []
    forks_left = [True]

    def fork():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads run on purpose
            child = os.fork()
        if child == 0:
            os._exit(0 if reclaimer.reclaim(Level.CRITICAL, stop_below=10) is not None else 1)
        exits.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def fork_once():
        if not forks_left:
            return
        forks_left.clear()
        if forked_by == "the step itself":
            fork()
            return
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    reclaimer = make_reclaimer(step("forks", does=fork_once), step("second"), cooldown=0)

    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert exits == [0]
    assert len(result.steps) == 2


def test_reclaimer_is_collected_when_unreferenced(make_reclaimer, step):
    reclaimer = make_reclaimer(step("first"))
    witness = weakref.ref(reclaimer)

    del reclaimer
    gc.collect()

    assert witness() is None


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), True, "5%"])
def test_invalid_share_is_refused(share):
    with pytest.raises(ConfigError, match="share"):
        Reclaimer([], read=resident_bytes, share=share)


@pytest.mark.parametrize("cooldown", [-1, float("nan"), "15 s", True])
def test_invalid_cooldown_is_refused(cooldown):
    with pytest.raises(ConfigError, match="cooldown"):
        Reclaimer([], read=resident_bytes, cooldown=cooldown)


@pytest.mark.parametrize("wrong", [len, "trim", None])
def test_object_that_is_not_a_step_is_refused(wrong):
    with pytest.raises(ConfigError, match="steps"):
        Reclaimer([wrong], read=resident_bytes)


def test_default_steps_reclaim_in_a_real_process():
    # Of its own: beside all tests a full collection may take more time than a pass is granted.
    source = (
        "from memtools.cleanup import Reclaimer, default_steps\n"
        "from memtools.readings import Level, resident_bytes\n"
        "result = Reclaimer(default_steps(), read=resident_bytes).reclaim(Level.CRITICAL, stop_below=0)\n"
        "print(*(step.name for step in result.steps), result.exhausted, sep='\\n')"
    )

    out = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout

    *names, exhausted = out.splitlines()
    assert {"collect young", "collect all"} <= set(names)
    assert names == sorted(names, key=["shrink registered", "collect young", "collect all", "trim heap"].index)
    assert exhausted == "True"
