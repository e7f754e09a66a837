"""Steps that fail: nobody is harmed, and what keeps failing is left out for a while."""

import logging

import pytest

from memtools.cleanup import Reclaimer
from memtools.readings import Level


def fail_with(error):
    def fail():
        raise error

    return fail


@pytest.fixture
def ladder(clock, usage):
    def make(*steps, **settings):
        settings = {"clock": clock, "random": lambda: 0.0, "read": usage, "cooldown": 0, "share": 1.0} | settings
        return Reclaimer(steps, **settings)

    return make


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), StopIteration(), RecursionError()])
def test_step_that_raises_is_logged_and_counted_and_the_next_one_is_taken(ladder, step, caplog, error):
    broken, healthy = step("broken", does=fail_with(error)), step("healthy", frees=100)
    climbing = ladder(broken, healthy)

    climb = climbing.reclaim(Level.WARNING, stop_below=950)

    assert climb.is_effective
    assert [taken.name for taken in climb.steps] == ["broken", "healthy"]
    assert climbing.statistics().steps[0].failures == 1
    (logged,) = caplog.records
    assert logged.name == "memtools.cleanup"
    assert "'broken'" in logged.getMessage()
    assert logged.exc_info is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_failure_passes_and_leaves_the_ladder_free(ladder, step, error):
    first = step("first", does=fail_with(error()))
    climbing = ladder(first)

    with pytest.raises(error):
        climbing.reclaim(Level.WARNING, stop_below=10)

    first.does = None
    assert climbing.reclaim(Level.WARNING, stop_below=10) is not None


def test_the_same_failure_is_logged_once_a_minute(ladder, step, clock, caplog):
    climbing = ladder(step("broken", does=fail_with(ValueError())))
    for _ in range(4):
        climbing.reclaim(Level.WARNING, stop_below=10)

    assert len(caplog.records) == 1
    clock.advance(60)
    climbing.reclaim(Level.WARNING, stop_below=10)

    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "3 more since" in caplog.messages[1]


def test_step_that_failed_five_times_in_a_row_is_left_out_and_tried_again_after_five_minutes(ladder, step, clock):
    broken, healthy = step("broken", does=fail_with(ValueError())), step("healthy")
    climbing = ladder(broken, healthy)

    for _ in range(7):
        climbing.reclaim(Level.WARNING, stop_below=10)
    assert len(broken.calls) == 5
    assert climbing.statistics().steps[0].is_left_out
    clock.advance(300)
    climbing.reclaim(Level.WARNING, stop_below=10)
    climbing.reclaim(Level.WARNING, stop_below=10)
    assert len(broken.calls) == 6  # one trial, which failed

    clock.advance(300)
    broken.does = None
    for _ in range(3):
        climbing.reclaim(Level.WARNING, stop_below=10)

    assert len(broken.calls) == 9
    assert not climbing.statistics().steps[0].is_left_out
    assert len(healthy.calls) == 12


def test_failures_with_a_success_between_them_leave_nobody_out(ladder, step):
    moody = step("moody")
    climbing = ladder(moody)

    for number in range(20):
        moody.does = fail_with(ValueError()) if number % 5 else None
        climbing.reclaim(Level.WARNING, stop_below=10)

    assert len(moody.calls) == 20


def test_step_that_blocks_is_counted_and_pays_for_it(ladder, step, clock):
    slow = step("slow", takes=10.0)
    climbing = ladder(slow, share=0.05)

    climbing.reclaim(Level.WARNING, stop_below=10)
    clock.advance(180)

    assert climbing.reclaim(Level.WARNING, stop_below=10) is None
    told = climbing.statistics().steps[0]
    assert (told.overruns, told.failures) == (1, 0)
    assert told.longest_slice_s == pytest.approx(10.0)


@pytest.mark.parametrize("answer", [None, "12", -5, 1.5, float("nan")])
def test_step_that_returns_no_bytes_is_taken_for_one_that_knows_of_none(ladder, step, answer):
    class Odd:
        name = "odd"
        least = Level.WARNING

        def __call__(self, level, deadline):
            return answer

    climb = ladder(Odd()).reclaim(Level.WARNING, stop_below=10)

    assert climb.steps[0].freed_bytes == 0


def test_slices_that_fail_in_the_middle_keep_what_they_gave(ladder, usage):
    class Breaks:
        name = "breaks"
        least = Level.WARNING

        def __call__(self, level, deadline):
            return 0

        def slices(self, level, left):
            yield 100
            raise ValueError

    climbing = ladder(Breaks())

    climb = climbing.reclaim(Level.WARNING, stop_below=10)

    assert climb.steps[0].freed_bytes == 100
    assert climbing.statistics().steps[0].failures == 1


def test_slices_that_will_not_end_harm_nobody(ladder, usage):
    class Stubborn:
        name = "stubborn"
        least = Level.WARNING

        def __call__(self, level, deadline):
            return 0

        def slices(self, level, left):
            while True:
                try:
                    usage.used_bytes -= 600
                    yield 600
                except GeneratorExit:
                    yield 0

    climbing = ladder(Stubborn())

    climb = climbing.reclaim(Level.WARNING, stop_below=500)

    assert climb.is_effective
    assert climbing.statistics().steps[0].failures == 1
