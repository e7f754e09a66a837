"""`@bounded_history`: records, summary, keys and histories per object."""

import asyncio
import gc
import weakref

import pytest

from memtools import bounded_history
from memtools.decorators import CallRecord, HistorySummary
from memtools.structures import BoundedList


def test_history_keeps_the_last_calls_only():
    @bounded_history(3)
    def work(number):
        return number

    for number in range(10):
        work(number)

    assert len(work.history) == 3
    assert isinstance(work.history, BoundedList)
    assert work.history.maxlen == 3
    assert all(isinstance(call, CallRecord) and call.outcome == "ok" for call in work.history)
    assert work.history[0].started <= work.history[-1].started


async def test_outcome_is_ok_or_the_name_of_the_exception():
    @bounded_history
    async def work(error):
        await asyncio.sleep(0)
        if error is not None:
            raise error

    await work(None)
    with pytest.raises(KeyError):
        await work(KeyError(1))
    task = asyncio.create_task(work(None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [call.outcome for call in work.history] == ["ok", "KeyError", "CancelledError"]
    assert work.history.summary().failures == 2


@pytest.mark.parametrize("meter", ["rss", "tracemalloc"])
def test_outcome_of_plain_functions_and_generators(meter):
    @bounded_history(meter=meter)
    def work(error):
        if error:
            raise error

    @bounded_history(meter=meter)
    def items(error):
        yield 1
        if error:
            raise error

    work(None)
    with pytest.raises(OSError, match="full"):
        work(OSError("full"))
    list(items(None))
    with pytest.raises(OSError, match="full"):
        list(items(OSError("full")))
    stopped = items(None)
    next(stopped)
    stopped.close()

    assert [call.outcome for call in work.history] == ["ok", "OSError"]
    assert [call.outcome for call in items.history] == ["ok", "OSError", "ok"]


def test_outcome_of_a_call_inside_an_except_block_is_ok():
    @bounded_history
    def work():
        pass

    try:
        raise KeyError
    except KeyError:
        work()

    assert work.history[0].outcome == "ok"


def test_record_holds_the_figures_of_the_call():
    kept = []

    @bounded_history(meter="tracemalloc")
    def work():
        kept.append(bytearray(3_000_000))

    work()

    assert work.history[0].retained_bytes == pytest.approx(3_000_000, rel=0.02)
    assert work.history[0].exact
    assert work.history[0].duration_s > 0


def test_arguments_and_results_are_not_kept_by_default():
    class Thing:
        pass

    @bounded_history
    def forgetful(thing):
        return thing

    @bounded_history(keep_results=True)
    def keeping(thing):
        return thing

    first, second = Thing(), Thing()
    refs = [weakref.ref(first), weakref.ref(second)]
    forgetful(first)
    keeping(second)
    del first, second
    gc.collect()

    assert refs[0]() is None
    assert keeping.history[0].result is refs[1]()
    assert forgetful.history[0].result is None


async def test_keep_results_keeps_results_of_coroutines():
    @bounded_history(keep_results=True)
    async def work():
        await asyncio.sleep(0)
        return "done"

    assert await work() == "done"
    assert work.history[0].result == "done"


def test_summary_has_nearest_rank_percentiles():
    @bounded_history(100)
    def work():
        pass

    work.history.extend(
        CallRecord(float(n), n / 100, "ok" if n % 10 else "OSError", n, n, 0, exact=True) for n in range(1, 101)
    )

    assert work.history.summary() == HistorySummary(
        count=100, failures=10, mean_s=pytest.approx(0.505), p50_s=0.5, p95_s=0.95, p99_s=0.99, retained_bytes=5050
    )
    assert "100 calls, 10 failed" in str(work.history.summary())


def test_summary_of_no_calls_has_no_durations():
    @bounded_history
    def work():
        pass

    summary = work.history.summary()

    assert (summary.count, summary.mean_s, summary.p99_s) == (0, None, None)
    assert str(summary) == "no calls"


def test_key_groups_calls_in_a_bounded_mapping():
    @bounded_history(2, key=lambda symbol, *_: symbol)
    def price(symbol, amount):
        return symbol, amount

    for amount in range(5):
        price("ABC", amount)
    price("XYZ", 1)

    assert {key: len(calls) for key, calls in price.history.items()} == {"ABC": 2, "XYZ": 1}
    assert price.history.summary().count == 3
    for number in range(2000):
        price(number, 1)
    assert len(price.history) == 1000
    assert "ABC" not in price.history


def test_key_that_raises_does_not_fail_the_call(caplog):
    @bounded_history(2, key=lambda thing: thing.nothing)
    def work(thing):
        return thing

    assert work(1) == 1
    assert work(2) == 2

    assert len(work.history["<no key>"]) == 2
    assert caplog.text.count("key= of a bounded history failed") == 1


def test_per_instance_history_lives_as_long_as_the_object():
    class Equal:
        def __eq__(self, other):
            return True

        __hash__ = None

        @bounded_history(5, per_instance=True)
        def work(self):
            return self

        @bounded_history(5, per_instance=True)
        async def work_later(self):
            return self

    first, second = Equal(), Equal()
    first.work()
    first.work()
    second.work()
    asyncio.run(first.work_later())

    assert len(first.work.history) == 2
    assert len(second.work.history) == 1
    assert len(first.work_later.history) == 1
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None
    assert len(second.work.history) == 1


def test_objects_without_weak_references_share_one_history():
    class Slotted:
        __slots__ = ()

        @bounded_history(5, per_instance=True)
        def work(self):
            return 1

    Slotted().work()
    thing = Slotted()
    thing.work()

    assert len(thing.work.history) == 2
