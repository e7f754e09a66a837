"""Headroom as a threshold: the figure that is logged, and headroom that is not known."""

import logging

import pytest

from memtools.cleanup import Reclaimer
from memtools.events import LevelChanged, MemorySampled, ReclaimIneffective
from memtools.monitor._report import format_report
from memtools.readings import Level

MIB = 2**20


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "memtools.monitor")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "memtools.monitor"]


class Nothing:
    """A clean-up step that finds nothing to give back."""

    name = "nothing"
    min_level = Level.WARNING

    def __call__(self, level: Level, deadline: float) -> int:
        return 0


class TestFigureThatCrossed:
    def test_log_of_a_change_begins_with_the_headroom(self, machine, make, lines) -> None:
        monitor = make(None, None, free=("200 MiB", "100 MiB"))
        machine.headroom = 8 * MIB

        machine.raise_to(monitor, 120)

        assert lines()[0] == (
            "monitor: memory is CRITICAL, it was NORMAL: 8.0 MiB left (user), threshold 100.0 MiB free; "
            "in use 120.0 MiB of 1000.0 MiB (12%)"
        )

    def test_log_of_the_way_back_shows_the_headroom(self, machine, make, lines) -> None:
        monitor = make(None, None, free="200 MiB")
        machine.headroom = 150 * MIB
        machine.raise_to(monitor, 120)

        machine.headroom = 700 * MIB
        machine.set(monitor, 120)
        machine.set(monitor, 120, after_s=11)

        assert "memory is NORMAL, it was WARNING: 700.0 MiB left (user), threshold 200.0 MiB free" in lines()[-1]

    def test_repeated_line_says_when_the_level_falls(self, machine, make, lines) -> None:
        monitor = make(None, None, free=("200 MiB", "100 MiB"))
        machine.headroom = 8 * MIB
        machine.raise_to(monitor, 120)

        machine.set(monitor, 120, after_s=301)

        expected = "still CRITICAL: 8.0 MiB left (user), in use 120.0 MiB of 1000.0 MiB (12%); "
        assert any(expected + "the level falls when more than 125.0 MiB stay free" in line for line in lines())

    def test_events_carry_the_headroom_and_the_threshold(self, machine, make, events) -> None:
        monitor = make(None, None, free=("200 MiB", "100 MiB"), name="shared")
        machine.headroom = 8 * MIB

        machine.raise_to(monitor, 120)

        (change,) = [event for event in events if isinstance(event, LevelChanged)]
        sampled = [event for event in events if isinstance(event, MemorySampled)][-1]
        assert (change.monitor, change.headroom.value_bytes, change.free_bytes) == ("shared", 8 * MIB, 100 * MIB)
        assert (sampled.monitor, sampled.headroom.value_bytes) == ("shared", 8 * MIB)

    def test_ineffective_clean_up_names_what_should_be_left(self, machine, make, events, lines) -> None:
        reclaimer = Reclaimer([Nothing()], read=machine.read, clock=lambda: machine.now)
        monitor = make(None, None, free=("200 MiB", "100 MiB"), reclaimer=reclaimer)
        machine.headroom = 8 * MIB

        machine.raise_to(monitor, 120)

        (event,) = [event for event in events if isinstance(event, ReclaimIneffective)]
        assert (event.headroom.value_bytes, event.free_bytes) == (8 * MIB, 125 * MIB)
        assert any("all clean-up steps ran, 8.0 MiB left (user) (target 125.0 MiB)" in line for line in lines())

    def test_use_that_crossed_is_shown_where_both_may_decide(self, machine, make, events, lines) -> None:
        monitor = make("600 MiB", "800 MiB", free="10 MiB")

        machine.raise_to(monitor, 850)

        (change,) = [event for event in events if isinstance(event, LevelChanged)]
        assert (change.headroom, change.free_bytes) == (None, None)
        assert "850.0 MiB of 1000.0 MiB (85%), threshold 800.0 MiB" in lines()[0]

    def test_headroom_that_crossed_is_shown_where_both_may_decide(self, machine, make, events) -> None:
        monitor = make("600 MiB", "800 MiB", free="10 MiB")
        machine.headroom = 2 * MIB

        machine.raise_to(monitor, 100)

        (change,) = [event for event in events if isinstance(event, LevelChanged)]
        assert (change.after, change.headroom.value_bytes, change.free_bytes) == (Level.CRITICAL, 2 * MIB, 5 * MIB)

    def test_report_shows_the_thresholds_of_the_headroom(self, machine, make) -> None:
        monitor = make(None, None, free=("200 MiB", "100 MiB"))
        monitor.check()

        assert "warning below 200.0 MiB free, critical below 100.0 MiB free" in format_report(monitor.statistics(), ())


class TestUnknownHeadroom:
    def test_level_holds_while_it_is_not_known(self, machine, make) -> None:
        monitor = make(None, None, free="200 MiB")
        machine.headroom = 8 * MIB
        machine.raise_to(monitor, 120)

        machine.headroom = None
        for _ in range(5):
            machine.set(monitor, 120, after_s=60)

        assert monitor.level is Level.CRITICAL

    def test_it_is_logged_once_per_interval(self, machine, make, lines) -> None:
        monitor = make(None, None, free="200 MiB")
        machine.headroom = None

        for _ in range(5):
            machine.set(monitor, 120)

        (line,) = lines()
        assert "free= decides, but the headroom is not known; the level stays NORMAL until it is" in line

    def test_use_still_enters_a_level_without_it(self, machine, make) -> None:
        monitor = make("600 MiB", "800 MiB", free="10 MiB")
        machine.headroom = None

        machine.raise_to(monitor, 850)

        assert monitor.level is Level.CRITICAL

    def test_it_is_not_needed_where_only_use_decides(self, machine, make, lines) -> None:
        monitor = make("600 MiB", "800 MiB")
        machine.headroom = None

        machine.raise_to(monitor, 100)

        assert lines() == []
