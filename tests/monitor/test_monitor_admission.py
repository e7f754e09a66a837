"""Admissions: waiting, order, reserved bytes; on event loops and in threads."""

import asyncio
import threading

import pytest

from memtools import ConfigError, task_scope
from memtools.errors import AdmissionReused
from memtools.scopes import Admission

MIB = 2**20


async def _soon(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # a figure sets no event
            await asyncio.sleep(0.005)


async def test_admission_with_free_memory_does_not_wait(make):
    monitor = make()

    async with monitor.admit("200 MiB"), monitor.admit("200 MiB"):
        seen = monitor.statistics().admissions

    assert (seen.active, seen.delayed, seen.reserved_bytes) == (2, 0, 400 * MIB)
    assert monitor.statistics().admissions.active == 0


async def test_admission_when_none_is_active_is_immediate(machine, make):
    monitor = make()
    machine.raise_to(monitor, 950)

    async with monitor.admit("10 GiB"):
        assert monitor.statistics().admissions.delayed == 0


async def test_admission_at_critical_waits_until_memory_is_free(machine, make):
    monitor, order = make(), []
    machine.raise_to(monitor, 950)

    async def work():
        async with monitor.admit():
            order.append("second")

    async with monitor.admit():
        task = asyncio.create_task(work())
        await _soon(lambda: monitor.statistics().admissions.queued == 1)
        order.append("first")
        machine.used = 100 * MIB
        await asyncio.wait_for(task, 10)

    assert order == ["first", "second"]


async def test_admission_counts_reserved_bytes_not_yet_used(make):
    monitor, entered = make(), []  # 100 in use, critical at 800

    async def work():
        async with monitor.admit("200 MiB"):
            entered.append(True)

    async with monitor.admit("500 MiB"):
        task = asyncio.create_task(work())
        await _soon(lambda: monitor.statistics().admissions.queued == 1)
        assert entered == []
    await task

    assert entered == [True]


async def test_waiting_admissions_begin_in_order_of_arrival(machine, make):
    monitor, order = make(), []
    machine.raise_to(monitor, 950)

    async def work(number):
        async with monitor.admit():
            order.append(number)

    async with monitor.admit():
        tasks = []
        for number in range(10):
            tasks.append(asyncio.create_task(work(number)))
            await _soon(lambda: monitor.statistics().admissions.queued == len(tasks))
    await asyncio.gather(*tasks)

    assert order == list(range(10))


async def test_admission_cancelled_while_waiting_leaves_the_queue(machine, make):
    monitor = make()
    machine.raise_to(monitor, 950)

    async def work():
        async with monitor.admit():
            raise AssertionError

    async with monitor.admit():
        task = asyncio.create_task(work())
        await _soon(lambda: monitor.statistics().admissions.queued == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert monitor.statistics().admissions.queued == 0


async def test_task_scope_accepts_the_monitor_as_its_admission(machine, make):
    monitor, running, most = make(), 0, 0
    machine.raise_to(monitor, 950)
    assert isinstance(monitor, Admission)

    async def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with task_scope(admit=monitor) as tasks:
        for _ in range(5):
            tasks.create_task(work())

    assert most == 1
    assert monitor.statistics().admissions.admitted == 5


def test_threads_wait_in_the_same_queue(machine, make):
    monitor, order = make(), []
    machine.raise_to(monitor, 950)

    def work():
        with monitor.admit():
            order.append("second")

    thread = threading.Thread(target=work)
    with monitor.admit():
        thread.start()
        while monitor.statistics().admissions.queued < 1:
            pass
        order.append("first")
    thread.join(10)

    assert order == ["first", "second"]


def test_admission_of_a_closed_loop_does_not_block_the_queue(machine, make):
    monitor, entered = make(), []
    machine.raise_to(monitor, 950)
    outer = monitor.admit()
    outer.__enter__()

    loop = asyncio.new_event_loop()

    async def wait():
        async with monitor.admit():
            raise AssertionError

    stuck = wait()
    task = loop.create_task(stuck)
    loop.run_until_complete(asyncio.sleep(0.01))
    machine.used = 100 * MIB
    machine.now += 2  # it has not tried again for this long

    with monitor.admit():
        entered.append(True)

    assert entered == [True]
    outer.__exit__(None, None, None)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


async def test_admission_entered_twice_raises(make):
    admission = make().admit()
    async with admission:
        pass

    with pytest.raises(AdmissionReused, match="for each block"):
        await admission.__aenter__()


def test_admit_with_invalid_size_raises(make):
    with pytest.raises(ConfigError, match="size"):
        make().admit("much")


async def test_admission_without_a_reading_does_not_wait(machine, make):
    monitor = make()
    machine.refuses = True

    async with asyncio.timeout(5), monitor.admit(), monitor.admit("1 GiB"):
        assert monitor.statistics().admissions.active == 2
