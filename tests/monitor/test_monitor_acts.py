"""What the monitor does at a level: events, callbacks, the ladder, what is said once. Scripted memory and time."""

import logging
import random

import pytest

from memtools import Level
from memtools.cleanup import Reclaimer, ReclaimResult
from memtools.events import CleanupEnded, LevelChanged, MemorySampled, ReclaimIneffective
from memtools.readings import ReadingError
from memtools.scopes import memory_scope

MIB = 2**20


class Free:
    """A step that gives back what the test says."""

    name = "free"
    min_level = Level.WARNING

    def __init__(self, machine, to_mib=None):
        self.machine, self.to_mib, self.taken = machine, to_mib, 0

    def __call__(self, level, deadline):
        self.taken += 1
        if self.to_mib is not None:
            self.machine.used = self.to_mib * MIB
        return 0


@pytest.fixture
def ladder(machine):
    def make(step, **options):
        return Reclaimer([step], read=machine.read, clock=lambda: machine.now, random=lambda: 0.0, **options)

    return make


def test_every_change_is_told_with_the_threshold_that_was_passed(machine, make, heard):
    monitor = make("600 MiB", "800 MiB")

    machine.raise_to(monitor, 700)
    machine.raise_to(monitor, 850)
    machine.set(monitor, 100)
    machine.set(monitor, 100, after_s=11)

    changes = [event for event in heard if isinstance(event, LevelChanged)]
    assert [(one.before.name, one.after.name, one.threshold_bytes // MIB) for one in changes] == [
        ("NORMAL", "WARNING", 600),
        ("WARNING", "CRITICAL", 800),
        ("CRITICAL", "NORMAL", 800),
    ]
    assert monitor.statistics().level_changes == {Level.NORMAL: 1, Level.WARNING: 1, Level.CRITICAL: 1}


def test_one_critical_sample_is_read_again_at_once(machine, make):
    monitor = make()
    machine.used = 900 * MIB

    monitor.check()

    assert monitor.level is Level.CRITICAL


def test_a_glitch_enters_nothing(machine, make):
    monitor = make()
    machine.queue = [900 * MIB, 100 * MIB]

    monitor.check()

    assert monitor.level is Level.NORMAL


def test_readings_are_told_only_while_somebody_listens(machine, make, heard):
    monitor = make()

    reading = monitor.check()

    assert heard == [MemorySampled(reading, Level.NORMAL)]
    assert reading.used_bytes == 100 * MIB


def test_the_ladder_is_climbed_down_to_the_exit(machine, make, ladder, heard):
    step = Free(machine, to_mib=500)
    monitor = make(ladder=ladder(step))

    machine.raise_to(monitor, 700)

    assert step.taken == 1
    assert monitor.statistics().freed_bytes == 200 * MIB
    assert [event.after_bytes for event in heard if isinstance(event, CleanupEnded)] == [500 * MIB]


def test_an_overload_that_lasts_is_told_in_vain_once_with_its_owners(machine, make, ladder, heard, caplog):
    step = Free(machine)
    monitor = make(ladder=ladder(step))
    with memory_scope("hoard", meter="tracemalloc"):
        hoard = bytearray(5 * MIB)
        for _ in range(600):
            machine.set(monitor, 700, after_s=1)
        for _ in range(600):
            machine.set(monitor, 900, after_s=1)

    told = [event for event in heard if isinstance(event, ReclaimIneffective)]
    assert len(told) == 1
    assert told[0].target_bytes == 550 * MIB
    assert dict(told[0].largest)["hoard"] >= len(hoard)
    assert step.taken > 10
    assert sum("everything was tried" in record.message for record in caplog.records) == 1


def test_after_getting_below_it_may_be_in_vain_again(machine, make, ladder, heard):
    monitor = make(ladder=ladder(Free(machine)))

    for _ in range(2):
        machine.raise_to(monitor, 700)
        machine.set(monitor, 100, after_s=2000)
        machine.set(monitor, 100, after_s=2000)

    assert sum(isinstance(event, ReclaimIneffective) for event in heard) == 2


def test_at_the_end_of_a_critical_ladder_pools_are_recycled_and_then_it_is_said(machine, make, ladder):
    calls = []

    class Pool:
        def recycle(self):
            calls.append("recycle")

    pool = Pool()
    monitor = make(ladder=ladder(Free(machine)))
    monitor.register(pool)
    monitor.on_exhausted(calls.append)

    for _ in range(100):
        machine.set(monitor, 900)

    assert calls[0] == "recycle"
    assert isinstance(calls[1], ReclaimIneffective)
    assert len(calls) == 2
    assert pool


def test_a_warning_exhausts_nothing(machine, make, ladder):
    calls = []
    monitor = make(ladder=ladder(Free(machine)))
    monitor.on_exhausted(calls.append)

    machine.raise_to(monitor, 700)

    assert calls == []


def test_a_pool_that_died_is_recycled_no_more(machine, make, ladder):
    class Pool:
        def recycle(self):
            raise AssertionError

    monitor = make(ladder=ladder(Free(machine)))
    pool = Pool()
    monitor.register(pool)
    del pool

    machine.raise_to(monitor, 900)

    assert monitor.statistics().callback_failures == 0
    assert monitor.statistics().callbacks == ()


def test_a_light_clean_up_comes_at_its_interval(machine, make, heard):
    monitor = make(cleanup_interval=300)

    for _ in range(61):
        machine.set(monitor, 100, after_s=10)

    assert monitor.statistics().minor_collections == 2
    assert [event.level for event in heard if isinstance(event, CleanupEnded)] == [Level.NORMAL] * 2


def test_a_level_is_logged_once_and_repeated_every_five_minutes(machine, make, caplog):
    monitor = make()
    caplog.set_level(logging.WARNING, "memtools.monitor")

    for _ in range(65):
        machine.set(monitor, 700, after_s=10)

    texts = [record.message for record in caplog.records if "everything" not in record.message]
    assert texts[0].startswith("monitor: memory is WARNING, it was NORMAL: 700.0 MiB of 1000.0 MiB (70%)")
    assert len(texts) == 3
    assert "still WARNING" in texts[1]


def test_room_decides_where_free_is_given(machine, make):
    monitor = make(None, None, free="200 MiB")
    machine.room = 150 * MIB

    machine.raise_to(monitor, 100)

    assert monitor.level is Level.WARNING
    assert monitor.statistics().warning_bytes is None


def test_a_reading_that_is_refused_is_counted_and_raised_by_check_alone(machine, make):
    monitor = make(sample_every=1)
    machine.refuses = True

    monitor.record("job", 0.1)

    with pytest.raises(OSError, match="Too many open files"):
        monitor.check()
    assert monitor.statistics().failed_samples == 1
    assert issubclass(ReadingError, OSError)


def test_clean_up_under_permanent_overload_takes_at_most_a_twentieth_of_the_time(machine, make):
    chance = random.Random(1)

    class Slow(Free):
        def __call__(self, level, deadline):
            machine.now += chance.uniform(0.1, 2.0)
            return super().__call__(level, deadline)

    step = Slow(machine)
    ladder = Reclaimer([step], read=machine.read, clock=lambda: machine.now, cooldown=0)
    monitor = make(ladder=ladder)
    began = machine.now

    for _ in range(3600):
        machine.set(monitor, 900)

    assert step.taken > 50
    assert monitor.statistics().cleanup_s <= 0.05 * (machine.now - began) + 2.0
    assert isinstance(ladder.reclaim(Level.CRITICAL, 0), ReclaimResult | None)
