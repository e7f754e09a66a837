"""The engine at each level: events, callbacks, reclaim passes, log messages."""

import logging
import os
import random
import time

import pytest

from memtools import Level
from memtools.cleanup import Reclaimer, ReclaimResult
from memtools.errors import ReadingError
from memtools.events import CleanupEnded, LevelChanged, MemorySampled, ReclaimIneffective
from memtools.ledger import native_reason
from memtools.monitor import _engine
from memtools.pools import process_pool_scope
from memtools.scopes import memory_scope

MIB = 2**20


class Free:
    """A clean-up step after which as much is in use as the test says."""

    name = "free"
    min_level = Level.WARNING

    def __init__(self, machine, to_mib=None):
        self.machine, self.to_mib, self.runs = machine, to_mib, 0

    def __call__(self, level, deadline):
        self.runs += 1
        if self.to_mib is not None:
            self.machine.used = self.to_mib * MIB
        return 0


@pytest.fixture
def reclaimer(machine):
    def make(step, **options):
        return Reclaimer([step], read=machine.read, clock=lambda: machine.now, random=lambda: 0.0, **options)

    return make


def test_level_change_event_names_the_passed_threshold(machine, make, events):
    monitor = make("600 MiB", "800 MiB")

    machine.raise_to(monitor, 700)
    machine.raise_to(monitor, 850)
    machine.set(monitor, 100)
    machine.set(monitor, 100, after_s=11)

    changes = [event for event in events if isinstance(event, LevelChanged)]
    assert [(change.before.name, change.after.name, change.threshold_bytes // MIB) for change in changes] == [
        ("NORMAL", "WARNING", 600),
        ("WARNING", "CRITICAL", 800),
        ("CRITICAL", "NORMAL", 800),
    ]
    assert monitor.statistics().level_changes == {Level.NORMAL: 1, Level.WARNING: 1, Level.CRITICAL: 1}


def test_critical_sample_is_confirmed_at_once(machine, make):
    monitor = make()
    machine.used = 900 * MIB

    monitor.check()

    assert monitor.level is Level.CRITICAL


def test_single_high_sample_changes_no_level(machine, make):
    monitor = make()
    machine.queue = [900 * MIB, 100 * MIB]

    monitor.check()

    assert monitor.level is Level.NORMAL


def test_check_with_a_listener_emits_the_sample(machine, make, events):
    monitor = make()

    reading = monitor.check()

    assert events == [MemorySampled(reading, Level.NORMAL, "monitor")]
    assert reading.used_bytes == 100 * MIB


def test_reclaim_stops_below_the_exit(machine, make, reclaimer, events):
    step = Free(machine, to_mib=500)
    monitor = make(reclaimer=reclaimer(step))

    machine.raise_to(monitor, 700)

    assert step.runs == 1
    assert monitor.statistics().freed_bytes == 200 * MIB
    assert [event.after_bytes for event in events if isinstance(event, CleanupEnded)] == [500 * MIB]


def test_lasting_overload_is_reported_once_a_level_with_owners(machine, make, reclaimer, events, caplog):
    step = Free(machine)
    monitor = make(reclaimer=reclaimer(step))
    with memory_scope("hoard", meter="tracemalloc"):
        hoard = bytearray(5 * MIB)
        for _ in range(600):
            machine.set(monitor, 700, after_s=1)
        for _ in range(600):
            machine.set(monitor, 900, after_s=1)

    reported = [event for event in events if isinstance(event, ReclaimIneffective)]
    assert [event.level for event in reported] == [Level.WARNING, Level.CRITICAL]
    assert reported[0].target_bytes == 550 * MIB
    assert dict(reported[0].largest)["hoard"] >= len(hoard)
    assert step.runs > 10
    assert sum("all clean-up steps ran" in record.message for record in caplog.records) == 2
    assert monitor.statistics().ineffective_reclaims == 1


def test_lasting_overload_reads_the_accounts_twice_a_level(machine, make, reclaimer, monkeypatch):
    readings = []
    monkeypatch.setattr(_engine, "notable_owners", lambda count: readings.append(count) or ((), ()))
    monitor = make(reclaimer=reclaimer(Free(machine)))
    for used in (700, 900):
        for _ in range(600):
            machine.set(monitor, used, after_s=1)

    assert len(readings) == 4  # when it is entered, and when no clean-up has helped


def test_ineffective_reclaim_is_reported_again_after_recovery(machine, make, reclaimer, events):
    monitor = make(reclaimer=reclaimer(Free(machine)))

    for _ in range(2):
        machine.raise_to(monitor, 700)
        machine.set(monitor, 100, after_s=2000)
        machine.set(monitor, 100, after_s=2000)

    assert sum(isinstance(event, ReclaimIneffective) for event in events) == 2


def test_exhausted_reclaim_recycles_pools_before_on_exhausted(machine, make, reclaimer):
    calls = []

    class Pool:
        def recycle(self):
            calls.append("recycle")

    pool = Pool()
    monitor = make(reclaimer=reclaimer(Free(machine)))
    monitor.register(pool)
    monitor.on_exhausted(calls.append)

    for _ in range(100):
        machine.set(monitor, 900)

    assert calls[0] == "recycle"
    assert isinstance(calls[1], ReclaimIneffective)
    assert len(calls) == 2
    assert pool


def test_on_exhausted_is_not_called_at_warning(machine, make, reclaimer):
    calls = []
    monitor = make(reclaimer=reclaimer(Free(machine)))
    monitor.on_exhausted(calls.append)

    machine.raise_to(monitor, 700)

    assert calls == []


def test_collected_pool_is_not_recycled(machine, make, reclaimer):
    class Pool:
        def recycle(self):
            raise AssertionError

    monitor = make(reclaimer=reclaimer(Free(machine)))
    pool = Pool()
    monitor.register(pool)
    del pool

    machine.raise_to(monitor, 900)

    assert monitor.statistics().callback_failures == 0
    assert monitor.statistics().callbacks == ()


def test_minor_collection_runs_at_its_interval(machine, make, events):
    monitor = make(cleanup_interval=300)

    for _ in range(61):
        machine.set(monitor, 100, after_s=10)

    assert monitor.statistics().minor_collections == 2
    assert [event.level for event in events if isinstance(event, CleanupEnded)] == [Level.NORMAL] * 2


def test_level_is_logged_once_and_again_every_five_minutes(machine, make, caplog):
    monitor = make()
    caplog.set_level(logging.WARNING, "memtools.monitor")

    for _ in range(65):
        machine.set(monitor, 700, after_s=10)

    texts = [record.message for record in caplog.records if "all clean-up steps" not in record.message]
    assert texts[0].startswith("monitor: memory is WARNING, it was NORMAL: 700.0 MiB of 1000.0 MiB (70%)")
    assert len(texts) == 3
    assert "still WARNING" in texts[1]


def test_free_threshold_decides_by_headroom(machine, make):
    monitor = make(None, None, free="200 MiB")
    machine.headroom = 150 * MIB

    machine.raise_to(monitor, 100)

    assert monitor.level is Level.WARNING
    assert monitor.statistics().warning_bytes is None


def test_refused_reading_is_counted_and_raised_only_by_check(machine, make):
    monitor = make(sample_every=1)
    machine.refuses = True

    monitor.record("job", 0.1)

    with pytest.raises(OSError, match="Too many open files"):
        monitor.check()
    assert monitor.statistics().failed_samples == 1
    assert issubclass(ReadingError, OSError)


def test_cleanup_under_overload_takes_at_most_a_twentieth(machine, make):
    rng = random.Random(1)

    class Slow(Free):
        def __call__(self, level, deadline):
            machine.now += rng.uniform(0.1, 2.0)
            return super().__call__(level, deadline)

    step = Slow(machine)
    reclaimer = Reclaimer([step], read=machine.read, clock=lambda: machine.now, cooldown=0)
    monitor = make(reclaimer=reclaimer)
    started = machine.now

    for _ in range(3600):
        machine.set(monitor, 900)

    assert step.runs > 50
    assert monitor.statistics().cleanup_s <= 0.05 * (machine.now - started) + 2.0
    assert isinstance(reclaimer.reclaim(Level.CRITICAL, 0), ReclaimResult | None)


def test_change_of_level_tells_rate_and_largest_owners(machine, make, events):
    monitor = make()
    with memory_scope("hoard", meter="tracemalloc"):
        hoard = bytearray(5 * MIB)
        for used in range(100, 701, 10):
            machine.set(monitor, used)
        machine.set(monitor, 700)

    (change,) = (event for event in events if isinstance(event, LevelChanged))
    assert change.rate is not None
    assert 9 * MIB <= change.rate <= 10.5 * MIB
    assert dict(change.largest)["hoard"] >= len(hoard)


@pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
def test_change_of_level_tells_what_each_call_leaves(machine, make, events):
    monitor = make()
    kept = []
    for _ in range(200):
        with memory_scope("keeps"):
            kept.append(bytearray(100_000))

    machine.set(monitor, 900)

    (change,) = (event for event in events if isinstance(event, LevelChanged))
    assert dict(change.growing)["keeps"] == pytest.approx(100_000, rel=0.02)


def test_rate_is_not_known_in_the_first_second(machine, make, events):
    monitor = make()

    machine.set(monitor, 900)

    (change,) = (event for event in events if isinstance(event, LevelChanged))
    assert change.rate is None


def test_process_pools_are_recycled_without_being_registered(machine, make, reclaimer):
    monitor = make(reclaimer=reclaimer(Free(machine)))

    with process_pool_scope(1, name="workers") as pool:
        pid = pool.submit(os.getpid).result()
        machine.raise_to(monitor, 900)
        assert [each.name for each in monitor.statistics().callbacks] == ["process_pool_scope.recycle"]
        while pid in [worker.pid for worker in pool.statistics().workers]:
            time.sleep(0.01)
        assert pool.submit(os.getpid).result() != pid
        assert pool.statistics().recycled == 1


def test_process_pool_that_was_removed_is_not_recycled(machine, make, reclaimer):
    monitor = make(reclaimer=reclaimer(Free(machine)))

    with process_pool_scope(1) as pool:
        monitor.remove(pool)
        machine.raise_to(monitor, 900)

    assert monitor.statistics().callbacks == ()
