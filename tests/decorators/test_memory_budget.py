"""`@memory_budget`: when a call is stopped, and what is reported."""

import asyncio
import pickle

import pytest

from memtools import BudgetExceeded, memory_budget, subscribe
from memtools.events import BudgetOverrun

MB = 10**6


def test_call_within_its_budget_returns():
    @memory_budget("2 MB", meter="tracemalloc")
    def work():
        return len(bytearray(MB))

    assert work() == MB


def test_plain_call_over_budget_raises_with_the_figures():
    @memory_budget("1 MB", meter="tracemalloc")
    def work():
        return len(bytearray(3 * MB))

    with pytest.raises(BudgetExceeded) as caught:
        work()

    error = caught.value
    assert error.scope.endswith("work")
    assert error.used_bytes == pytest.approx(3 * MB, rel=0.02)
    assert (error.budget_bytes, error.measure) == (MB, "peak")
    assert not isinstance(error, MemoryError)
    assert pickle.loads(pickle.dumps(error)).used_bytes == error.used_bytes


async def test_coroutine_over_budget_stops_at_the_exceeding_step():
    steps = []

    @memory_budget("2 MB", meter="tracemalloc")
    async def runaway():
        hoard = []
        for step in range(100):
            hoard.append(bytearray(MB))
            steps.append(step)
            await asyncio.sleep(0)

    with pytest.raises(BudgetExceeded):
        await runaway()

    assert steps == [0, 1]


async def test_stopped_coroutine_may_clean_up_and_is_reported_once():
    events = []

    @memory_budget("1 MB", meter="tracemalloc")
    async def runaway():
        hoard = []
        try:
            for _ in range(10):
                hoard.append(bytearray(MB))
                await asyncio.sleep(0)
        except BudgetExceeded:
            hoard.append(bytearray(MB))
            await asyncio.sleep(0)
            return "cleaned up"

    with subscribe(lambda event: events.append(event) if isinstance(event, BudgetOverrun) else None):
        assert await runaway() == "cleaned up"

    assert [(event.in_flight, event.measure) for event in events] == [(True, "peak")]


async def test_nested_budgets_report_the_innermost_exceeded_one():
    @memory_budget("10 MB", meter="tracemalloc")
    async def outer():
        await inner()

    @memory_budget("1 MB", meter="tracemalloc")
    async def inner():
        hoard = []
        for _ in range(100):
            hoard.append(bytearray(MB))
            await asyncio.sleep(0)

    with pytest.raises(BudgetExceeded) as caught:
        await outer()

    assert caught.value.scope.endswith("inner")


async def test_other_tasks_go_on_when_one_is_stopped():
    @memory_budget("2 MB", meter="tracemalloc")
    async def work(blocks):
        hoard = []
        for _ in range(blocks):
            hoard.append(bytearray(MB))
            await asyncio.sleep(0)
        return blocks

    results = await asyncio.gather(work(1), work(50), work(1), return_exceptions=True)

    assert results[0] == results[2] == 1
    assert isinstance(results[1], BudgetExceeded)


def test_retained_budget_counts_only_bytes_that_stay_live():
    kept = []

    @memory_budget("1 MB", measure="retained", meter="tracemalloc")
    def work(*, keeps):
        block = bytearray(3 * MB)
        if keeps:
            kept.append(block)

    work(keeps=False)
    with pytest.raises(BudgetExceeded) as caught:
        work(keeps=True)

    assert caught.value.measure == "retained"


def test_rss_budget_counts_the_growth_of_the_process(trimmed_heap):
    kept = []

    @memory_budget("10 MB", measure="rss")
    def work():
        kept.append(bytearray(b"x") * (40 * MB))

    with pytest.raises(BudgetExceeded) as caught:
        work()

    assert caught.value.measure == "rss"


def test_on_exceed_warn_logs_a_warning_with_the_figures(caplog):
    @memory_budget("1 MiB", on_exceed="warn", meter="tracemalloc")
    def work():
        return len(bytearray(3 * MB))

    assert work() == 3 * MB
    assert "Memory budget exceeded" in caplog.text
    assert "work used 2.9 MiB, budget 1.0 MiB" in caplog.text


def test_on_exceed_callable_gets_the_error_and_may_fail(caplog):
    given = []

    def on_exceed(error):
        given.append(error)
        raise OSError("the pager is down")

    @memory_budget("1 MB", on_exceed=on_exceed, meter="tracemalloc")
    def work():
        return len(bytearray(3 * MB))

    assert work() == 3 * MB
    assert [type(error) for error in given] == [BudgetExceeded]
    assert "the pager is down" in caplog.text


async def test_budget_that_is_not_hard_is_checked_at_the_end_only():
    steps = []

    @memory_budget("1 MB", hard=False, meter="tracemalloc")
    async def work():
        hoard = []
        for step in range(5):
            hoard.append(bytearray(MB))
            steps.append(step)
            await asyncio.sleep(0)

    with pytest.raises(BudgetExceeded):
        await work()

    assert len(steps) == 5


def test_budget_is_checked_for_sampled_calls_only():
    @memory_budget("1 MB", sample_every=2, meter="tracemalloc")
    def work():
        return len(bytearray(3 * MB))

    with pytest.raises(BudgetExceeded):
        work()
    assert work() == 3 * MB
    with pytest.raises(BudgetExceeded):
        work()


async def test_rss_meter_stops_a_runaway_coroutine_at_a_step(trimmed_heap):
    steps = []

    @memory_budget("120 MB", meter="rss", inexact="raise")
    async def runaway():
        hoard = []
        for step in range(20):
            hoard.append(bytearray(b"x") * (40 * MB))
            steps.append(step)
            await asyncio.sleep(0)

    with pytest.raises(BudgetExceeded):
        await runaway()

    assert 3 <= len(steps) < 6
