"""Thresholds: invalid arguments, shares of a changing limit, free headroom."""

import math

import pytest

from memtools import ConfigError, Level, MemoryMonitor
from memtools.monitor._levels import Thresholds

MIB = 2**20


def _bounds(warning=None, critical=None, free=None, limit=1000):
    return Thresholds(warning, critical, free, lambda: limit).bounds(limit)


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
def test_invalid_argument_raises_and_is_named(options, name):
    with pytest.raises(ConfigError) as caught:
        MemoryMonitor(**options)

    assert caught.value.name == name


def test_share_without_a_known_limit_raises(machine, make):
    machine.limit = None

    with pytest.raises(ConfigError, match="no limit is known"):
        make("60%", "80%")
    assert make("60 MiB", "80 MiB").level is Level.NORMAL


def test_default_thresholds_are_80_and_90_percent(machine):
    statistics = MemoryMonitor(source=machine.source()).statistics()

    assert (statistics.warning_bytes, statistics.critical_bytes) == (800 * MIB, 900 * MIB)


def test_single_threshold_has_a_single_level():
    assert set(_bounds(warning=600).by_level) == {Level.WARNING}
    assert set(_bounds(critical=600).by_level) == {Level.CRITICAL}


def test_free_threshold_is_critical_at_half_of_it():
    bounds = _bounds(free="10%")

    assert bounds.assess(1, 101).reached is Level.NORMAL
    assert bounds.assess(1, 100).reached is Level.WARNING
    assert bounds.assess(1, 50).reached is Level.CRITICAL
    assert bounds.assess(1, 62).held is Level.CRITICAL
    assert bounds.assess(1, 126).held is Level.NORMAL


def test_unknown_headroom_decides_nothing():
    assert _bounds(free=100).assess(10**9, None).reached is Level.NORMAL


def test_exit_by_headroom_counts_from_the_present_use():
    bounds = _bounds(free=100)

    assert bounds.exit_bytes(Level.WARNING, used_bytes=1000, headroom_bytes=25) == 900


def test_share_that_falls_below_a_size_is_entered_with_it():
    thresholds = Thresholds("500 MiB", "80%", None, lambda: 1000 * MIB)

    bounds = thresholds.bounds(100 * MIB)

    assert bounds.assess(80 * MIB, None).reached is Level.CRITICAL
    assert bounds.assess(79 * MIB, None).reached is Level.NORMAL


def test_share_thresholds_follow_a_changing_limit(machine, make):
    monitor = make("60%", "80%")
    machine.raise_to(monitor, 100)
    assert monitor.level is Level.NORMAL

    machine.limit = 120 * MIB
    machine.raise_to(monitor, 100)

    assert monitor.level is Level.CRITICAL
    assert monitor.statistics().critical_bytes == 96 * MIB


def test_thresholds_keep_the_last_known_limit(machine, make):
    monitor = make("60%", "80%")

    machine.limit = None
    machine.raise_to(monitor, 850)

    assert monitor.level is Level.CRITICAL


@pytest.mark.parametrize(
    ("options", "name", "meant"),
    [
        ({"warning": 500, "critical": 800}, "warning", "'500 MB'"),
        ({"warning": "60%", "critical": 800}, "critical", "'800 MB'"),
        ({"warning": "512"}, "warning", "'512 MB'"),
        ({"free": 200}, "free", "'200 MB'"),
        ({"free": ("1 GiB", 200)}, "free", "'200 MB'"),
    ],
)
def test_bare_number_below_a_mebibyte_is_refused(options, name, meant):
    with pytest.raises(ConfigError, match="a bare number is bytes") as caught:
        MemoryMonitor(**options)

    assert caught.value.name == name
    assert meant in str(caught.value)


def test_small_numbers_of_a_rehearsal_are_accepted(make):
    assert make(500, 800).statistics().critical_bytes == 800


def test_threshold_below_the_use_at_the_start_is_logged(caplog):
    with MemoryMonitor("2 MB", "1 TB", limit="2 TB", min_interval=60, max_interval=60, cleanup_interval=0):
        pass

    (message,) = (record.message for record in caplog.records if "at the start" in record.message)
    assert "warning=1.9 MiB is below the" in message
    assert "memory counts as short from now on" in message


def test_threshold_above_the_limit_is_logged(caplog):
    with MemoryMonitor("1 GiB", "3 GiB", limit="2 GiB", pressure=False):
        pass

    (message,) = (record.message for record in caplog.records if "above the limit" in record.message)
    assert "critical=3.0 GiB is above the limit of 2.0 GiB, so it is never reached; a share such as '90%'" in message


def test_thresholds_that_make_sense_are_not_logged(caplog):
    with MemoryMonitor("60%", "80%", limit="64 GiB", pressure=False):
        pass

    assert not [record for record in caplog.records if record.levelname == "WARNING"]
