"""The level machine: entering, leaving, noise; without a clock or real memory."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.monitor._levels import DWELL_S, LONGEST_DWELL_S, Assessment, LevelMachine, Thresholds
from memtools.readings import Level

NORMAL, WARNING, CRITICAL = Level

BOUNDS = Thresholds("60%", "80%", None, lambda: 1000).bounds(1000)


def _drive(machine, samples):
    """Return the changes as (time, before, after)."""
    changes = []
    for now, used in samples:
        before = machine.level
        if machine.observe(BOUNDS.assess(used, None), now) is not None:
            changes.append((now, before, machine.level))
    return changes


def test_level_is_entered_by_the_second_sample():
    machine = LevelMachine()

    assert machine.observe(Assessment(WARNING, WARNING), 0.0) is None
    assert machine.needs_confirmation
    assert machine.observe(Assessment(WARNING, WARNING), 1.0) is WARNING


def test_samples_not_in_a_row_enter_no_level():
    assert _drive(LevelMachine(), [(0, 650), (1, 500), (2, 650), (3, 500)]) == []


def test_critical_is_entered_directly_from_normal():
    assert _drive(LevelMachine(), [(0, 900), (0, 900)]) == [(0, NORMAL, CRITICAL)]


def test_rise_is_not_delayed_by_the_dwell_time():
    changes = _drive(LevelMachine(), [(0, 650), (0.05, 650), (0.1, 850), (0.15, 850)])

    assert changes == [(0.05, NORMAL, WARNING), (0.15, WARNING, CRITICAL)]


def test_level_is_left_five_points_below_its_entry_not_four():
    machine = LevelMachine()
    _drive(machine, [(0, 650), (1, 650)])

    assert _drive(machine, [(t, 560) for t in range(2, 100)]) == []
    assert _drive(machine, [(t, 549) for t in range(100, 112)]) == [(109, WARNING, NORMAL)]


def test_high_sample_restarts_the_dwell_time():
    machine = LevelMachine()
    _drive(machine, [(0, 650), (1, 650)])

    samples = [(t, 560 if t == 9 else 100) for t in range(2, 40)]

    assert _drive(machine, samples) == [(19, WARNING, NORMAL)]


def test_level_falls_from_critical_to_normal_in_one_change():
    machine = LevelMachine()
    _drive(machine, [(0, 900), (0, 900)])

    assert _drive(machine, [(t, 100) for t in range(1, 30)]) == [(10, CRITICAL, NORMAL)]


def test_relapse_doubles_the_dwell_time_up_to_its_bound():
    machine = LevelMachine()
    dwell_times = []
    now = 0
    for _ in range(8):
        _drive(machine, [(now, 650), (now, 650)])
        ((left, *_),) = _drive(machine, [(now + t, 100) for t in range(1, 400)])
        dwell_times.append(left - now)
        now = left + 1

    assert dwell_times == [10, 20, 40, 80, 160, 320, 320, 320]


def test_late_relapse_has_the_first_dwell_time():
    machine = LevelMachine()
    _drive(machine, [(0, 650), (0, 650), (20, 100), (21, 100)])
    _drive(machine, [(5000, 650), (5000, 650)])

    assert machine.required_dwell_s == DWELL_S


readings = st.lists(
    st.tuples(st.floats(0, 30), st.one_of(st.integers(0, 1200), st.sampled_from([549, 550, 599, 600, 750, 800]))),
    max_size=200,
)


@given(readings)
def test_any_readings_rise_by_two_samples_and_fall_after_dwell(steps):
    machine = LevelMachine()
    now, samples = 0.0, []
    for wait, used in steps:
        now += wait
        samples.append((now, used))

    entered_at, last_used = None, None
    for now, used in samples:
        before = machine.level
        after = machine.observe(BOUNDS.assess(used, None), now)
        if after is not None and after < before:
            assert now - entered_at >= DWELL_S
            assert used < (750 if before is CRITICAL else 550)
        if after is not None and after > before:
            assert min(used, last_used) >= (800 if after is CRITICAL else 600)
        if after is not None:
            entered_at = now
        last_used = used


@given(readings)
def test_two_samples_above_an_entry_reach_its_level(steps):
    machine = LevelMachine()
    now = 0.0
    for (_, first), (wait, second) in pairwise(steps):
        now += wait
        machine.observe(BOUNDS.assess(first, None), now)
        machine.observe(BOUNDS.assess(second, None), now)
        assert machine.level >= BOUNDS.assess(min(first, second), None).reached


# The sampling loop samples each second while memory is short, more often while it moves; 5 s are those of operations
# alone.
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("interval", "spread"), [(0.5, 20), (1.0, 5), (1.0, 50), (1.0, 100), (5.0, 20), (5.0, 50)])
@pytest.mark.parametrize("centre", [550, 580, 600, 640, 800])
def test_hour_of_noise_gives_at_most_twelve_changes(seed, spread, centre, interval):
    noise = random.Random(f"{seed} {spread} {centre} {interval}")
    samples = [(step * interval, noise.gauss(centre, spread)) for step in range(int(3600 / interval))]

    changes = _drive(LevelMachine(), samples)

    assert len(changes) <= 12


@pytest.mark.parametrize("seed", range(10))
def test_hour_of_slow_noise_gives_at_most_twelve_changes(seed):
    # Each sample depends on the last one, as memory does: it stays above or below for half a minute.
    noise, used, samples = random.Random(seed), 600.0, []
    for second in range(3600):
        used += (600 - used) / 30 + noise.gauss(0, 10)
        samples.append((second, used))

    assert len(_drive(LevelMachine(), samples)) <= 12


def test_longest_dwell_time_is_five_doublings():
    assert LONGEST_DWELL_S == 320.0
