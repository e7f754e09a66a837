"""Callbacks that fail, block or are cancelled, and the monitor that goes on."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from memtools import ConfigError, Level
from memtools._safe_calls import RETRY_AFTER_S
from memtools.monitor import MemoryMonitor
from memtools.monitor._callbacks import Callback, CallbackRunner

MIB = 2**20


def _fails(change):
    raise ValueError("no")


def _has_no_memory(change):
    raise MemoryError


def _is_cancelled(change):
    raise asyncio.CancelledError


async def _fails_later(change):
    await asyncio.sleep(0)
    raise ValueError("no")


async def _cancels_itself(change):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def _never_ends(change):
    await asyncio.sleep(3600)


async def _will_not_be_cancelled(change):
    for _ in range(3):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2)


BAD = [_fails, _has_no_memory, _is_cancelled, _fails_later, _cancels_itself, _never_ends, _will_not_be_cancelled]


def _by_name(monitor):
    return {callback.name: callback for callback in monitor.statistics().callbacks}


@pytest.mark.parametrize("bad", BAD)
def test_bad_callback_in_check_does_not_stop_the_next_one(machine, make, bad):
    monitor, called = make(callback_timeout=0.1), []
    monitor.on_warning(bad)
    monitor.on_warning(called.append)

    machine.raise_to(monitor, 700)

    assert len(called) == 1
    assert _by_name(monitor)[bad.__name__].failures == 1


@pytest.mark.parametrize("bad", BAD)
async def test_bad_callback_on_a_loop_does_not_stop_the_next_one(machine, make, bad):
    monitor, called = make(callback_timeout=0.1, min_interval=0.01, max_interval=0.01), asyncio.Event()
    monitor.on_warning(bad)
    monitor.on_warning(lambda change: called.set())
    machine.used = 700 * MIB

    async with monitor:
        await asyncio.wait_for(called.wait(), 10)

    assert _by_name(monitor)[bad.__name__].failures == 1


@pytest.mark.parametrize("bad", BAD)
def test_bad_callback_in_a_thread_does_not_stop_the_next_one(machine, make, bad):
    monitor, called = make(callback_timeout=0.1, min_interval=0.01, max_interval=0.01), threading.Event()
    monitor.on_warning(bad)
    monitor.on_warning(lambda change: called.set())
    machine.used = 700 * MIB

    with monitor:
        assert called.wait(10)

    assert _by_name(monitor)[bad.__name__].failures == 1


def test_blocking_callback_does_not_stop_the_thread_loop(machine, make):
    monitor, called, release = make(callback_timeout=0.05, min_interval=0.01, max_interval=0.01), [], threading.Event()

    def blocks(change):
        release.wait(30)

    monitor.on_warning(blocks)
    monitor.on_warning(lambda change: called.append(monitor.statistics().samples))
    machine.used = 700 * MIB
    with monitor:
        deadline = time.monotonic() + 20
        while (not called or monitor.statistics().samples <= called[0]) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = _by_name(monitor)
        release.set()

    blocked = next(callback for name, callback in seen.items() if name.endswith("blocks"))
    assert (blocked.calls, blocked.failures) == (1, 1)
    assert called


def test_abandoned_callback_is_called_again_after_its_late_end():
    release, ended = threading.Event(), threading.Event()

    def blocks():
        release.wait(30)

    callback = Callback(lambda: blocks, "recycle", "blocks", time.monotonic)
    runner = CallbackRunner(0.01, time.monotonic)
    callback.end_late = lambda: (Callback.end_late(callback), ended.set())
    runner.run(callback, (), in_thread=True)
    assert callback.begin() is False

    release.set()
    assert ended.wait(10)

    assert callback.begin() is True
    seen = callback.statistics()
    assert (seen.calls, seen.failures, seen.skipped) == (2, 1, 1)


def test_callback_raising_system_exit_in_a_thread_is_a_failure():
    def ends():
        raise SystemExit

    callback = Callback(lambda: ends, "recycle", "ends", time.monotonic)

    CallbackRunner(5.0, time.monotonic).run(callback, (), in_thread=True)

    assert callback.statistics().failures == 1
    assert callback.begin() is True


def _switch(machine, monitor, times):
    for _ in range(times):
        machine.raise_to(monitor, 700)
        machine.set(monitor, 100, after_s=400)


def test_callback_after_five_failures_is_skipped_then_retried(machine, make, caplog):
    monitor = make()
    monitor.on_warning(_fails)

    for _ in range(5):
        monitor._engine.callbacks.for_trigger("warning")[0].begin()
        monitor._engine.callbacks.for_trigger("warning")[0].end(ValueError("no"))
    assert monitor.statistics().callbacks_broken == 1
    machine.raise_to(monitor, 700)
    assert _by_name(monitor)["_fails"].skipped == 1

    machine.set(monitor, 100, after_s=RETRY_AFTER_S + 1)
    machine.raise_to(monitor, 700)

    seen = _by_name(monitor)["_fails"]
    assert seen.calls == 6
    assert seen.failures == 6
    assert sum("it is not called for 300 s" in record.message for record in caplog.records) >= 1


def test_callback_failures_are_logged_at_most_once_a_minute(machine, make, caplog):
    monitor = make()
    monitor.on_warning(_fails)
    callback = monitor._engine.callbacks.for_trigger("warning")[0]

    for _ in range(4):
        callback.begin()
        callback.end(ValueError("no"))

    assert len(caplog.records) == 1


def test_callback_that_calls_check_is_not_reentered(machine, make):
    monitor, depth = make(), []

    @monitor.on_warning
    def checks(change):
        depth.append(change)
        monitor.check()
        machine.used = 900 * MIB
        monitor.check()

    machine.raise_to(monitor, 700)

    assert len(depth) == 1
    assert monitor.level is Level.CRITICAL


def test_callback_may_remove_and_add_callbacks_while_it_runs(machine, make):
    monitor, calls = make(), []

    def second(change):
        calls.append("second")

    def third(change):
        calls.append("third")

    def first(change):
        calls.append("first")
        monitor.remove(first)
        monitor.remove(second)
        monitor.on_warning(third)

    monitor.on_warning(first)
    monitor.on_warning(second)
    _switch(machine, monitor, 2)

    assert calls == ["first", "third"]


def test_callback_registered_twice_is_called_once(machine, make):
    monitor, calls = make(), []

    def once(change):
        calls.append(change)

    monitor.on_warning(once)
    monitor.on_warning(once)
    machine.raise_to(monitor, 700)

    assert len(calls) == 1


def test_on_normal_is_called_when_the_level_falls(machine, make):
    monitor, calls = make(), []
    monitor.on_normal(lambda change: calls.append(change.before))
    monitor.on_critical(lambda change: calls.append(change.after))

    machine.raise_to(monitor, 900)
    machine.set(monitor, 100, after_s=20)

    assert calls == [Level.CRITICAL, Level.CRITICAL]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_callback_raising_system_exit_is_not_suppressed(machine, make, error):
    monitor = make()

    @monitor.on_warning
    def ends(change):
        raise error

    with pytest.raises(error):
        machine.raise_to(monitor, 700)


@pytest.mark.parametrize("decorator", ["on_warning", "on_critical", "on_normal", "on_exhausted"])
def test_callback_that_is_not_callable_raises(make, decorator):
    with pytest.raises(ConfigError, match=decorator):
        getattr(make(), decorator)(3)


@pytest.mark.parametrize("target", [object(), 3, "x"])
def test_register_object_without_shrink_or_recycle_raises(make, target):
    with pytest.raises(ConfigError, match="target"):
        make().register(target)


async def test_async_callback_started_by_check_ends_with_the_monitor(machine, make):
    monitor: MemoryMonitor = make()
    ended = []

    @monitor.on_warning
    async def waits(change):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async with monitor:
        machine.raise_to(monitor, 700)
        await asyncio.sleep(0)

    assert ended == [True]
