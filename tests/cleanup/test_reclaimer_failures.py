"""Steps that fail: the exception is logged and counted, and a step that keeps failing is skipped for a while."""

import logging

import pytest

from memtools.cleanup import Reclaimer
from memtools.readings import Level


def fail_with(error):
    def fail():
        raise error

    return fail


@pytest.fixture
def make_reclaimer(clock, usage):
    def make(*steps, **settings):
        settings = {"clock": clock, "random": lambda: 0.0, "read": usage, "cooldown": 0, "share": 1.0} | settings
        return Reclaimer(steps, **settings)

    return make


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), StopIteration(), RecursionError()])
def test_step_that_raises_is_logged_and_the_next_step_runs(make_reclaimer, step, caplog, error):
    broken, healthy = step("broken", does=fail_with(error)), step("healthy", frees=100)
    reclaimer = make_reclaimer(broken, healthy)

    result = reclaimer.reclaim(Level.WARNING, stop_below=950)

    assert result.is_effective
    assert [step.name for step in result.steps] == ["broken", "healthy"]
    assert reclaimer.statistics().steps[0].failures == 1
    (logged,) = caplog.records
    assert logged.name == "memtools.cleanup"
    assert "'broken'" in logged.getMessage()
    assert logged.exc_info is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_base_exception_propagates_and_releases_the_lock(make_reclaimer, step, error):
    first = step("first", does=fail_with(error()))
    reclaimer = make_reclaimer(first)

    with pytest.raises(error):
        reclaimer.reclaim(Level.WARNING, stop_below=10)

    first.does = None
    assert reclaimer.reclaim(Level.WARNING, stop_below=10) is not None


def test_repeated_failure_is_logged_once_a_minute(make_reclaimer, step, clock, caplog):
    reclaimer = make_reclaimer(step("broken", does=fail_with(ValueError())))
    for _ in range(4):
        reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert len(caplog.records) == 1
    clock.advance(60)
    reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "3 more since" in caplog.messages[1]


def test_step_is_skipped_for_five_minutes_after_five_failures(make_reclaimer, step, clock):
    broken, healthy = step("broken", does=fail_with(ValueError())), step("healthy")
    reclaimer = make_reclaimer(broken, healthy)

    for _ in range(7):
        reclaimer.reclaim(Level.WARNING, stop_below=10)
    assert len(broken.calls) == 5
    assert reclaimer.statistics().steps[0].is_left_out
    clock.advance(300)
    reclaimer.reclaim(Level.WARNING, stop_below=10)
    reclaimer.reclaim(Level.WARNING, stop_below=10)
    assert len(broken.calls) == 6  # one trial, which failed

    clock.advance(300)
    broken.does = None
    for _ in range(3):
        reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert len(broken.calls) == 9
    assert not reclaimer.statistics().steps[0].is_left_out
    assert len(healthy.calls) == 12


def test_step_that_succeeds_in_between_is_never_skipped(make_reclaimer, step):
    unreliable = step("unreliable")
    reclaimer = make_reclaimer(unreliable)

    for number in range(20):
        unreliable.does = fail_with(ValueError()) if number % 5 else None
        reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert len(unreliable.calls) == 20


def test_time_of_a_late_step_is_charged_to_the_budget(make_reclaimer, step, clock):
    slow = step("slow", takes=10.0)
    reclaimer = make_reclaimer(slow, share=0.05)

    reclaimer.reclaim(Level.WARNING, stop_below=10)
    clock.advance(180)

    assert reclaimer.reclaim(Level.WARNING, stop_below=10) is None
    statistics = reclaimer.statistics().steps[0]
    assert (statistics.overruns, statistics.failures) == (1, 0)
    assert statistics.longest_slice_s == pytest.approx(10.0)


@pytest.mark.parametrize("answer", [None, "12", -5, 1.5, float("nan")])
def test_step_that_returns_no_number_frees_zero_bytes(make_reclaimer, step, answer):
    class NoNumber:
        name = "no number"
        min_level = Level.WARNING

        def __call__(self, level, deadline):
            return answer

    result = make_reclaimer(NoNumber()).reclaim(Level.WARNING, stop_below=10)

    assert result.steps[0].freed_bytes == 0


def test_slice_that_raises_keeps_the_bytes_freed_before(make_reclaimer, usage):
    class Breaks:
        name = "breaks"
        min_level = Level.WARNING

        def __call__(self, level, deadline):
            return 0

        def slices(self, level, left):
            yield 100
            raise ValueError

    reclaimer = make_reclaimer(Breaks())

    result = reclaimer.reclaim(Level.WARNING, stop_below=10)

    assert result.steps[0].freed_bytes == 100
    assert reclaimer.statistics().steps[0].failures == 1


def test_slices_that_ignore_close_count_as_a_failure(make_reclaimer, usage):
    class Stubborn:
        name = "stubborn"
        min_level = Level.WARNING

        def __call__(self, level, deadline):
            return 0

        def slices(self, level, left):
            while True:
                try:
                    usage.used_bytes -= 600
                    yield 600
                except GeneratorExit:
                    yield 0

    reclaimer = make_reclaimer(Stubborn())

    result = reclaimer.reclaim(Level.WARNING, stop_below=500)

    assert result.is_effective
    assert reclaimer.statistics().steps[0].failures == 1
