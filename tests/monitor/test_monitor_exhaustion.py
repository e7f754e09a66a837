"""Health, the minimum flow, and when memory counts as exhausted: with scripted memory and time."""

import asyncio
import threading

import pytest

from memtools import ConfigError, Level, MemoryMonitor
from memtools.cleanup import Reclaimer
from memtools.errors import AdmissionRefused


@pytest.fixture
def started(make):
    """Make started monitors whose sampling loops look once an hour, so that the test says when."""
    running = []

    def start(*args, **options):
        monitor = make(*args, **{"min_interval": 3600, "max_interval": 3600} | options)
        monitor.start()
        running.append(monitor)
        return monitor

    yield start
    for monitor in running:
        monitor.stop()


class TestHealth:
    def test_health_is_ready_while_memory_is_normal(self, machine, started):
        monitor = started()
        machine.set(monitor, 100)

        health = monitor.health()

        assert (health.status, health.is_ready, health.is_live) == ("ready", True, True)
        assert (health.level, health.used_bytes, health.limit_bytes) == (Level.NORMAL, 100 * 2**20, 1000 * 2**20)
        assert health.headroom_bytes == 900 * 2**20
        assert health.reason == "memory is NORMAL: 100.0 MiB of 1000.0 MiB (10%)"

    def test_health_at_warning_is_ready(self, machine, started):
        monitor = started()
        machine.raise_to(monitor, 700)

        assert monitor.level is Level.WARNING
        assert monitor.health().is_ready

    def test_health_at_critical_is_not_ready_until_it_is_left(self, machine, started):
        monitor = started()
        machine.set(monitor, 900)
        ready = [monitor.health().is_ready]
        machine.set(monitor, 700)  # below the exit, for less than the dwell time
        ready.append(monitor.health().is_ready)
        for _ in range(11):
            machine.set(monitor, 700)
        ready.append(monitor.health().is_ready)

        assert ready == [False, False, True]

    def test_health_is_not_live_once_nothing_has_helped(self, machine, started):
        monitor = started(exhausted_after=60)
        machine.set(monitor, 900)
        seen = [monitor.health().status]
        for _ in range(6):
            machine.set(monitor, 900, after_s=9.0)
            seen.append(monitor.health().status)
        machine.set(monitor, 900, after_s=9.0)
        health = monitor.health()

        assert seen == ["critical"] * 7
        assert (health.status, health.is_ready, health.is_live) == ("exhausted", False, False)
        assert "nothing has helped for 63 s" in health.reason

    def test_sample_below_the_exit_begins_the_time_anew(self, machine, started):
        monitor = started(exhausted_after=60)
        machine.set(monitor, 900)
        machine.set(monitor, 900, after_s=50)
        machine.set(monitor, 700)
        machine.set(monitor, 900)
        machine.set(monitor, 900, after_s=30)

        assert monitor.health().status == "critical"

    def test_clean_up_that_helps_is_not_exhaustion(self, machine, started):
        class Shrink:
            name, min_level = "shrink", Level.CRITICAL

            def __call__(self, level, deadline):
                machine.used = 700 * 2**20
                return 200 * 2**20

        reclaimer = Reclaimer([Shrink()], read=machine.read, clock=lambda: machine.now, cooldown=0)
        monitor = started(exhausted_after=5, reclaimer=reclaimer)
        for _ in range(10):
            machine.set(monitor, 900, after_s=9)

        assert monitor.level is Level.CRITICAL
        assert monitor.health().status == "critical"

    def test_unknown_headroom_is_no_exhaustion(self, machine, started):
        monitor = started(None, None, free=("200 MiB", "100 MiB"), exhausted_after=5)
        machine.headroom = 50 * 2**20
        machine.set(monitor, 900)
        machine.headroom = None
        for _ in range(10):
            machine.set(monitor, 900, after_s=5)

        health = monitor.health()

        assert health.status == "critical"
        assert "the headroom, which decides, cannot be read" in health.reason

    def test_monitor_that_was_not_started_is_not_healthy(self, machine, make):
        monitor = make()
        machine.set(monitor, 100)

        health = monitor.health()

        assert (health.status, health.is_ready, health.is_live) == ("stopped", False, True)

    async def test_monitor_whose_task_was_cancelled_is_not_healthy(self, machine, make):
        async with make() as monitor:
            machine.set(monitor, 100)
            assert monitor.health().is_ready
            (task,) = (each for each in asyncio.all_tasks() if each.get_name().startswith("memtools-"))
            task.cancel()
            await asyncio.wait({task})

            assert monitor.health().status == "stopped"

    def test_old_reading_is_not_healthy(self, machine, started):
        monitor = started(min_interval=1, max_interval=1)
        machine.set(monitor, 100)
        machine.refuses = True
        machine.now += 60

        health = monitor.health()

        assert (health.status, health.is_ready, health.age_s) == ("stale", False, 60)
        assert health.reason == "its reading is 60 s old"

    def test_health_reads_nothing(self, machine, started):
        monitor = started()
        machine.set(monitor, 100)
        samples = monitor.statistics().samples

        for _ in range(10):
            monitor.health()

        assert monitor.statistics().samples == samples


class TestMinimumFlow:
    def test_flow_at_critical_is_as_many_a_second_as_chosen(self, machine, make):
        monitor = make(min_flow=2)
        machine.set(monitor, 900)

        let_through = 0
        for _ in range(100):  # 10 s
            machine.now += 0.1
            let_through += monitor.try_admit()

        assert 19 <= let_through <= 20

    def test_flow_begins_an_interval_after_the_level(self, machine, make):
        monitor = make(min_flow=1)
        machine.set(monitor, 900)

        assert not monitor.try_admit()

    def test_work_below_critical_begins_at_once(self, machine, make):
        monitor = make(min_flow=1)
        machine.raise_to(monitor, 700)

        assert [monitor.try_admit() for _ in range(5)] == [True] * 5

    def test_no_flow_is_chosen_by_zero(self, machine, make):
        monitor = make(min_flow=0)
        machine.set(monitor, 900)
        machine.now += 1000

        assert not monitor.try_admit()

    async def test_admission_flows_past_a_block_that_does_not_end(self, machine, make):
        monitor, entered = make(min_flow=1), []
        machine.set(monitor, 900)

        async def work(number):
            async with monitor.admit():
                entered.append(number)

        async with monitor.admit():
            tasks = [asyncio.create_task(work(number)) for number in range(3)]
            await asyncio.sleep(0.1)
            seen = [list(entered)]
            for _ in range(3):
                machine.now += 1.0
                await asyncio.sleep(0.12)
                seen.append(list(entered))
            await asyncio.gather(*tasks)

        assert seen == [[], [0], [0, 1], [0, 1, 2]]

    @pytest.mark.parametrize("rate", [-1, True, "1", float("nan"), float("inf")])
    def test_rate_that_makes_no_sense_is_refused(self, make, rate):
        with pytest.raises(ConfigError, match="min_flow"):
            make(min_flow=rate)


class TestClosedAdmissions:
    async def test_those_that_wait_and_those_that_come_are_refused(self, machine, make):
        monitor = make()
        machine.set(monitor, 900)

        async with monitor.admit():
            waiting = asyncio.create_task(monitor.admit().__aenter__())
            await asyncio.sleep(0.05)
            monitor._engine.admissions.close()
            with pytest.raises(AdmissionRefused, match="the process ends"):
                await waiting
            with pytest.raises(AdmissionRefused):
                async with monitor.admit():
                    pass

        assert not monitor.try_admit()
        assert monitor.statistics().admissions.active == 0
        assert monitor.statistics().admissions.queued == 0

    def test_thread_that_waits_is_refused(self, machine, make):
        monitor, caught = make(), []
        machine.set(monitor, 900)

        def work():
            try:
                with monitor.admit():
                    pass
            except AdmissionRefused as error:
                caught.append(error)

        with monitor.admit():
            thread = threading.Thread(target=work)
            thread.start()
            monitor._engine.admissions.close()
            thread.join(10)

        assert len(caught) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"code": 0},
        {"code": 3},
        {"code": 4},
        {"code": 126},
        {"code": True},
        {"code": "75"},
        {"grace": -1},
        {"grace": float("nan")},
        {"report_file": 7},
        {"report_file": ""},
        {"report_file": "/no/such/folder/report"},
    ],
)
def test_end_that_makes_no_sense_is_refused(options):
    monitor = MemoryMonitor()

    with pytest.raises(ConfigError, match=next(iter(options))):
        monitor.exit_when_exhausted(**options)

    assert monitor._engine.end is None


def test_time_of_exhaustion_must_be_above_zero(make):
    with pytest.raises(ConfigError, match="exhausted_after"):
        make(exhausted_after=0)
