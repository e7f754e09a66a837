"""The sampling loop in a thread and in a task: start, stop, wake, failures."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pytest

from memtools import Level
from memtools.cleanup import Reclaimer
from memtools.errors import MonitorAlreadyStarted
from memtools.events import MemorySampled
from memtools.monitor import _loops, monitors
from memtools.monitor._sampler import SamplingInterval

MIB = 2**20


def _descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# The kernel takes some 10 ms to give up a pressure trigger: fewer rounds with it.
@pytest.mark.parametrize(("pressure", "rounds"), [(False, 1000), (True, 30)])
def test_thousand_thread_starts_leave_no_thread_or_descriptor(make, pressure, rounds):
    monitor = make(pressure=pressure)
    with monitor:
        pass
    before = threading.active_count(), _descriptors()

    for _ in range(rounds):
        with monitor:
            pass

    assert (threading.active_count(), _descriptors()) == before
    assert monitors() == ()


@pytest.mark.parametrize(("pressure", "rounds"), [(False, 1000), (True, 30)])
async def test_thousand_task_starts_leave_no_task_or_descriptor(make, pressure, rounds):
    monitor = make(pressure=pressure)
    async with monitor:
        await asyncio.sleep(0)
    before = len(asyncio.all_tasks()), _descriptors()

    for number in range(rounds):
        async with monitor:
            if number % 2:
                await asyncio.sleep(0)

    assert (len(asyncio.all_tasks()), _descriptors()) == before
    assert monitors() == ()


def test_started_monitor_is_listed_and_a_second_start_raises(make):
    monitor = make(name="mine")

    with monitor:
        assert monitors() == (monitor,)
        with pytest.raises(MonitorAlreadyStarted, match="mine is started already"):
            monitor.start()

    monitor.stop()  # a second stop does nothing
    assert monitor.statistics().mode == "none"


async def test_sampling_loop_alone_changes_the_level(machine, make):
    monitor, changed = make(min_interval=0.01, max_interval=0.01), asyncio.Event()
    monitor.on_critical(lambda change: changed.set())
    machine.used = 900 * MIB

    async with monitor:
        await asyncio.wait_for(changed.wait(), 10)
        assert monitor.statistics().mode == "task"

    assert monitor.level is Level.CRITICAL


async def test_operation_wakes_the_asyncio_loop(machine, make):
    monitor, changed = make(sample_every=1, min_interval=3600.0, max_interval=3600.0), asyncio.Event()
    monitor.on_critical(lambda change: changed.set())
    async with monitor:
        await asyncio.sleep(0.01)
        machine.used = 900 * MIB

        monitor.record("job", 0.1)

        await asyncio.wait_for(changed.wait(), 10)


def test_operation_wakes_the_thread_loop(machine, make):
    monitor, changed = make(sample_every=1, min_interval=3600.0, max_interval=3600.0), threading.Event()
    monitor.on_critical(lambda change: changed.set())
    with monitor:
        while not monitor.statistics().samples:
            time.sleep(0.001)
        machine.used = 900 * MIB

        monitor.record("job", 0.1)

        assert changed.wait(10)


def test_monitor_starts_again_after_its_loop_was_closed(make):
    monitor = make()

    async def start():
        await monitor.__aenter__()

    asyncio.run(start())  # cancels what is left on its loop
    assert monitor.statistics().mode == "none"

    async def start_again():
        async with monitor:
            await asyncio.sleep(0)
            assert monitor.statistics().mode == "task"

    asyncio.run(start_again())
    asyncio.run(start_again())


def test_monitors_run_on_two_loops_in_two_threads(machine, make):
    machine.used = 900 * MIB
    found = []

    def run(name):
        async def main():
            monitor, changed = make(name=name, min_interval=0.01, max_interval=0.01), asyncio.Event()
            monitor.on_critical(lambda change: changed.set())
            async with monitor:
                await asyncio.wait_for(changed.wait(), 10)
                found.append(name)

        asyncio.run(main())

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(found) == ["one", "two"]


def test_operations_sample_when_no_thread_can_be_started(machine, make, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monitor = make(sample_every=1)
    monkeypatch.setattr(threading.Thread, "start", fail)

    with monitor:
        machine.used = 900 * MIB
        monitor.record("job", 0.1)

        assert monitor.level is Level.CRITICAL
        assert monitor.statistics().mode == "none"

        monkeypatch.undo()
        machine.now += 60
        monitor.record("job", 0.1)
        assert monitor.statistics().mode == "thread"
    assert "no thread could be started" in caplog.text


def test_monitor_never_stopped_gives_a_resource_warning(make):
    monitor = make(name="forgotten")
    monitor.start()

    with pytest.warns(ResourceWarning, match="forgotten was started and never stopped"):
        del monitor


async def test_refused_reading_does_not_end_the_sampling_loop(machine, make, caplog):
    monitor = make()
    machine.refuses = True

    async with monitor:
        await asyncio.sleep(0.01)
        assert monitor.statistics().mode == "task"

    assert monitor.statistics().failed_samples == 1
    assert "a sample failed" in caplog.text


def test_gc_pauses_are_measured_while_started(make):
    monitor = make()
    with monitor:
        gc.collect()
        pauses = monitor.statistics().pauses

    assert pauses.pauses >= 1
    assert pauses.longest_s > 0


def test_sampling_interval_shrinks_near_a_threshold():
    interval = SamplingInterval()
    interval.observe(0, 0.0)

    assert interval.seconds(1000, 1000, is_short=False, is_pending=False) == 5.0
    assert interval.seconds(20, 1000, is_short=False, is_pending=False) == 1.0
    assert interval.seconds(1000, 1000, is_short=True, is_pending=False) == 1.0
    assert interval.seconds(1000, 1000, is_short=False, is_pending=True) == 0.05

    interval.observe(100, 1.0)
    assert interval.seconds(800, 1000, is_short=False, is_pending=False) == 2.0
    interval.observe(100, 2.0)
    assert interval.seconds(800, 1000, is_short=False, is_pending=False) == 4.0
    interval.observe(10**9, 2.1)
    assert interval.seconds(800, 1000, is_short=False, is_pending=False) == 0.05


class TestSeveralOfOneName:
    def test_second_one_that_is_started_gets_a_number(self, make) -> None:
        first, second, third = make(), make(), make(name="other")

        with first, second, third:
            names = [monitor.name for monitor in (first, second, third)]
            in_statistics = [monitor.statistics().name for monitor in monitors()]

        assert names == ["monitor", "monitor-2", "other"]
        assert in_statistics == names

    def test_number_is_free_again_after_the_end(self, make) -> None:
        first, second = make(), make()
        with first, second:
            pass

        with second, first:
            assert (second.name, first.name) == ("monitor", "monitor-2")

    def test_name_that_looks_numbered_is_told_apart(self, make) -> None:
        named, first, second = make(name="{0}-2"), make(name="{0}"), make(name="{0}")

        with named, first, second:
            assert [named.name, first.name, second.name] == ["{0}-2", "{0}", "{0}-3"]

    def test_events_name_the_monitor_they_are_from(self, machine, make, events) -> None:
        first, second = make(), make()
        with first, second:
            second.check()

        assert "monitor-2" in {event.monitor for event in events if isinstance(event, MemorySampled)}


class TestCleanUpThatHangs:
    class Hanging:
        name = "hanging"
        min_level = Level.WARNING

        def __init__(self) -> None:
            self.entered = threading.Event()
            self.release = threading.Event()

        def __call__(self, level: Level, deadline: float) -> int:
            self.entered.set()
            self.release.wait(20)
            return 0

    def test_level_is_current_while_the_loop_hangs(self, machine, make) -> None:
        step = self.Hanging()
        reclaimer = Reclaimer([step], read=machine.read, clock=lambda: machine.now)
        monitor = make(reclaimer=reclaimer, min_interval=0.001)
        machine.used = 950 * 2**20
        levels = []

        with monitor:
            assert step.entered.wait(20)
            machine.used = 100 * 2**20
            for _ in range(3):
                machine.now += 20.0
                levels.append(monitor.level)
            step.release.set()

        assert levels[-1] is Level.NORMAL

    def test_stop_leaves_it_behind_and_says_so(self, machine, make, caplog, monkeypatch) -> None:
        monkeypatch.setattr(_loops, "STOP_S", 0.05)
        step = self.Hanging()
        reclaimer = Reclaimer([step], read=machine.read, clock=lambda: machine.now)
        monitor = make(reclaimer=reclaimer, min_interval=0.001)
        machine.used = 950 * 2**20

        with monitor:
            assert step.entered.wait(20)
            thread = next(each for each in threading.enumerate() if each.name == "memtools-monitor")
        step.release.set()
        thread.join(20)

        assert "stopped while a clean-up step or callback did not return" in caplog.text
        assert not thread.is_alive()


GEVENT_COMES_LATE = """
import memtools.monitor
from gevent import monkey
monkey.patch_all()  # as a worker of gunicorn does
import time
monitor = memtools.MemoryMonitor()
monitor.start()
time.sleep(0.1)
monitor.stop()
"""


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed here")
def test_thread_ends_where_gevent_came_late() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GEVENT_COMES_LATE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")  # no "its thread was abandoned"
