"""Thresholds: what is refused, what follows the limit, what counts as free."""

import math

import pytest

from memtools import ConfigError, Level, MemoryMonitor
from memtools.monitor._levels import Thresholds

MIB = 2**20


def _marks(warning=None, critical=None, free=None, limit=1000):
    return Thresholds(warning, critical, free, lambda: limit).marks(limit)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"warning": -1}, "warning"),
        ({"critical": -1}, "critical"),
        ({"warning": math.nan}, "warning"),
        ({"critical": math.inf}, "critical"),
        ({"warning": True}, "warning"),
        ({"warning": "101%"}, "warning"),
        ({"critical": "100.5%"}, "critical"),
        ({"warning": "80%", "critical": "60%"}, "warning"),
        ({"warning": "60%", "critical": "60%"}, "warning"),
        ({"warning": "500Mb"}, "warning"),
        ({"warning": 0}, "warning"),
        ({"free": "0 MiB"}, "free"),
        ({"free": -5}, "free"),
        ({"free": ("1 MiB", "2 MiB")}, "free"),
        ({"free": ("3 MiB", "2 MiB", "1 MiB")}, "free"),
        ({"cleanup_interval": -1}, "cleanup_interval"),
        ({"cleanup_interval": math.nan}, "cleanup_interval"),
        ({"sample_every": 0}, "sample_every"),
        ({"sample_every": True}, "sample_every"),
        ({"callback_timeout": 0}, "callback_timeout"),
        ({"min_interval": 0}, "min_interval"),
        ({"min_interval": 9.0}, "min_interval"),
        ({"max_interval": math.inf}, "max_interval"),
        ({"name": " "}, "name"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options, name):
    with pytest.raises(ConfigError) as caught:
        MemoryMonitor(**options)

    assert caught.value.name == name


def test_a_share_is_refused_where_no_limit_is_known(machine, make):
    machine.limit = None

    with pytest.raises(ConfigError, match="no limit is known"):
        make("60%", "80%")
    assert make("60 MiB", "80 MiB").level is Level.NORMAL


def test_without_any_threshold_there_are_two(machine):
    statistics = MemoryMonitor(gauges=machine.gauges()).statistics()

    assert (statistics.warning_bytes, statistics.critical_bytes) == (800 * MIB, 900 * MIB)


def test_a_single_threshold_has_a_single_level():
    assert set(_marks(warning=600).by_level) == {Level.WARNING}
    assert set(_marks(critical=600).by_level) == {Level.CRITICAL}


def test_free_room_is_critical_at_half_of_it():
    marks = _marks(free="10%")

    assert marks.judge(1, 101).reached is Level.NORMAL
    assert marks.judge(1, 100).reached is Level.WARNING
    assert marks.judge(1, 50).reached is Level.CRITICAL
    assert marks.judge(1, 62).held is Level.CRITICAL
    assert marks.judge(1, 126).held is Level.NORMAL


def test_an_unknown_room_decides_nothing():
    assert _marks(free=100).judge(10**9, None).reached is Level.NORMAL


def test_what_must_be_given_back_for_room_counts_from_the_present_use():
    marks = _marks(free=100)

    assert marks.exit_use(Level.WARNING, used_bytes=1000, room_bytes=25) == 900


def test_a_share_that_slips_below_a_size_is_entered_with_it():
    thresholds = Thresholds("500 MiB", "80%", None, lambda: 1000 * MIB)

    marks = thresholds.marks(100 * MIB)

    assert marks.judge(80 * MIB, None).reached is Level.CRITICAL
    assert marks.judge(79 * MIB, None).reached is Level.NORMAL


def test_percent_thresholds_follow_a_limit_that_changes(machine, make):
    monitor = make("60%", "80%")
    machine.raise_to(monitor, 100)
    assert monitor.level is Level.NORMAL

    machine.limit = 120 * MIB
    machine.raise_to(monitor, 100)

    assert monitor.level is Level.CRITICAL
    assert monitor.statistics().critical_bytes == 96 * MIB


def test_a_limit_that_is_not_known_any_more_leaves_the_thresholds_as_they_were(machine, make):
    monitor = make("60%", "80%")

    machine.limit = None
    machine.raise_to(monitor, 850)

    assert monitor.level is Level.CRITICAL
