"""Operations: `watch` and `record`, their counts, their samples, watched functions."""

import asyncio
import inspect
import pickle
import threading
from functools import partial

import pytest

from memtools import ConfigError, Level, MemoryMonitor

MIB = 2**20
MONITOR = MemoryMonitor("60%", "80%", pressure=False)


@MONITOR.watch
def plain(first: int, *, second: str = "") -> int:
    """Add."""
    return first + len(second)


@MONITOR.watch
async def later(first: int) -> int:
    await asyncio.sleep(0)
    return first


def test_watched_function_keeps_its_signature_and_pickles():
    assert plain(1, second="ab") == 3
    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Add."
    assert str(inspect.signature(plain)) == "(first: int, *, second: str = '') -> int"
    assert pickle.loads(pickle.dumps(plain)) is plain
    assert not inspect.iscoroutinefunction(plain)


async def test_watched_coroutine_function_stays_one():
    assert inspect.iscoroutinefunction(later)
    assert await later(3) == 3


def test_watched_methods_of_all_kinds_bind_and_are_counted(make):
    monitor = make()

    class Shop:
        @monitor.watch
        def own(self):
            return self

        @monitor.watch
        @classmethod
        def of_class(cls):
            return cls

        @staticmethod
        @monitor.watch
        def static(value):
            return value

    shop = Shop()

    assert (shop.own(), Shop.of_class(), Shop.static(1)) == (shop, Shop, 1)
    assert monitor.statistics().operations == 3


def test_failed_operation_is_counted_and_raises(make):
    monitor = make()

    @monitor.watch(name="job")
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails()

    assert [(each.name, each.calls, each.failures) for each in monitor.statistics().by_operation] == [("job", 1, 1)]


async def test_cancelled_operation_is_not_a_failure(make):
    monitor = make()

    @monitor.watch
    async def waits():
        await asyncio.sleep(60)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    statistics = monitor.statistics()
    assert (statistics.operations, statistics.failures) == (1, 0)


def _generates():
    yield 1


async def _generates_later():
    yield 1


@pytest.mark.parametrize("function", [3, int, _generates, _generates_later, None.__class__])
def test_watch_of_a_class_or_generator_raises(make, function):
    with pytest.raises(ConfigError, match="a function or coroutine function"):
        make().watch(function)


def test_watched_partial_has_the_name_of_its_function(make):
    monitor = make()

    monitor.watch(partial(plain.__wrapped__, 1))()

    assert monitor.statistics().by_operation[0].name.endswith("plain")


def test_every_tenth_operation_of_all_names_samples_memory(machine, make):
    monitor = make()

    for number in range(95):
        monitor.record(("a", "b")[number % 2], 0.5)

    statistics = monitor.statistics()
    assert statistics.samples == 9
    assert {each.name: (each.calls, each.total_s) for each in statistics.by_operation} == {
        "a": (48, 24),
        "b": (47, 23.5),
    }


def test_operations_change_the_level_of_a_stopped_monitor(machine, make):
    monitor = make(sample_every=1)
    changes = []
    monitor.on_warning(changes.append)
    monitor.record("job", 0.1)

    machine.used = 700 * MIB
    for _ in range(3):
        machine.now += 0.1
        monitor.record("job", 0.1)

    assert monitor.level is Level.WARNING
    assert len(changes) == 1


def test_record_with_invalid_duration_counts_as_zero(make):
    monitor = make()

    for wrong in (-1.0, float("nan"), float("inf")):
        monitor.record("job", wrong)

    assert monitor.statistics().by_operation[0].total_s == 0.0


def test_operation_names_are_bounded_and_printable(make):
    monitor = make()

    for number in range(5000):
        monitor.record(f"name {number}\n{'x' * 500}", 0.1)

    names = [each.name for each in monitor.statistics().by_operation]
    assert len(names) == 257
    assert "<other>" in names
    assert all(len(name) <= 210 and name.isprintable() for name in names)
    assert monitor.statistics().operations == 5000


def test_operations_of_many_threads_are_all_counted(make):
    monitor = make()

    def work():
        for _ in range(5000):
            monitor.record("job", 0.001)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert monitor.statistics().operations == 40_000


def test_operation_in_a_finaliser_is_counted(make):
    monitor = make(sample_every=1)

    class Loud:
        def __del__(self):
            monitor.record("end", 0.1)

    for _ in range(100):
        loud = Loud()
        monitor.record("begin", 0.1)
        del loud

    assert monitor.statistics().operations == 200


def test_failing_sample_does_not_fail_the_operation(machine, make, caplog):
    monitor = make(sample_every=1)

    def broken():
        raise MemoryError

    machine.read, watched = broken, monitor.watch(len)
    monitor._engine.sampler._source = machine.source()

    assert [watched([1]) for _ in range(5)] == [1] * 5
    assert sum("a sample failed" in record.message for record in caplog.records) == 1
