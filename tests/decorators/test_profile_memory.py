"""`@profile_memory`: figures, statistics, sampling and log of calls."""

import asyncio
import logging

import pytest

from memtools import profile_memory, subscribe
from memtools.events import ScopeEnded

MB = 10**6


def test_peak_and_retained_of_a_call_are_within_two_percent():
    kept = []

    @profile_memory(meter="tracemalloc")
    def load():
        kept.append(bytearray(5 * MB))
        return len(bytearray(20 * MB))

    load()

    assert load.memory.last.peak_bytes == pytest.approx(25 * MB, rel=0.02)
    assert load.memory.last.retained_bytes == pytest.approx(5 * MB, rel=0.02)
    assert load.memory.last.exact


async def test_interleaved_calls_have_separate_figures():
    @profile_memory(meter="tracemalloc")
    async def load(size):
        block = bytearray(size)
        await asyncio.sleep(0)
        del block
        await asyncio.sleep(0)
        return load_usage

    load_usage = []
    with subscribe(lambda event: load_usage.append(event.peak_bytes)):
        await asyncio.gather(load(50 * MB), load(5 * MB), load(1 * MB))

    assert sorted(load_usage) == pytest.approx([1 * MB, 5 * MB, 50 * MB], rel=0.02)


def test_statistics_sum_calls_failures_and_figures():
    @profile_memory(meter="tracemalloc")
    def work(size):
        if size == 0:
            raise ValueError
        return len(bytearray(size))

    work(2 * MB)
    work(4 * MB)
    with pytest.raises(ValueError):  # noqa: PT011  # raised without a message
        work(0)

    statistics = work.memory.statistics()
    assert (statistics.calls, statistics.failures, statistics.active) == (3, 1, 0)
    assert statistics.max_peak_bytes == pytest.approx(4 * MB, rel=0.02)
    assert statistics.mean_peak_bytes == pytest.approx(2 * MB, rel=0.02)
    assert abs(statistics.retained_bytes) < 20_000
    assert "3 calls, 1 failed" in str(statistics)


async def test_statistics_show_live_bytes_of_running_calls():
    release = asyncio.Event()

    @profile_memory(meter="tracemalloc")
    async def hold():
        block = bytearray(3 * MB)
        await release.wait()
        return len(block)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    during = hold.memory.statistics()
    release.set()
    await task

    assert (during.active, during.calls) == (1, 0)
    assert during.live_bytes == pytest.approx(3 * MB, rel=0.02)
    assert hold.memory.statistics().active == 0


@pytest.mark.parametrize("sample", [1, 3, 2000])
def test_sample_every_measures_each_nth_call_from_the_first(sample):
    @profile_memory(sample_every=sample)
    def work():
        pass

    for _ in range(2 * sample + 1):
        work()

    assert work.memory.statistics().calls == 3


def test_usage_is_logged_at_the_given_level(caplog):
    @profile_memory(name="loud", log=logging.WARNING)
    def loud():
        pass

    @profile_memory(name="silent", log=None)
    def silent():
        pass

    with caplog.at_level(logging.DEBUG, logger="memtools.profile"):
        loud()
        silent()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "loud: peak" in caplog.text


def test_end_of_a_call_emits_scope_ended_with_its_name():
    @profile_memory(name="named")
    def work():
        pass

    events = []
    with subscribe(events.append):
        work()

    assert [(type(event), event.name, event.kind, event.failed) for event in events] == [
        (ScopeEnded, "named", "call", False)
    ]


def test_default_name_contains_the_module():
    @profile_memory
    def work():
        pass

    work()

    assert work.memory.statistics().name == f"{__name__}.{work.__qualname__}"


def test_meter_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("MEMTOOLS_METER", "tracemalloc")

    @profile_memory
    def work():
        pass

    work()

    assert work.memory.last.meter == "tracemalloc"


def test_rss_figures_are_never_exact():
    @profile_memory(meter="rss")
    def work():
        pass

    work()

    assert not work.memory.last.exact
    assert "process" in work.memory.last.note


def test_clear_forgets_all_calls():
    @profile_memory
    def work():
        pass

    work()
    work.memory.clear()

    assert work.memory.last is None
    assert work.memory.statistics().calls == 0
    assert "calls=0" in repr(work.memory)


async def test_generator_is_not_charged_for_its_consumer():
    @profile_memory(meter="tracemalloc")
    def numbers():
        for _ in range(3):
            yield bytearray(1000)

    @profile_memory(meter="tracemalloc")
    async def numbers_later():
        for _ in range(3):
            await asyncio.sleep(0)
            yield bytearray(1000)

    kept = [bytearray(5 * MB) for _ in numbers()]
    kept += [bytearray(5 * MB) async for _ in numbers_later()]

    assert numbers.memory.last.peak_bytes < MB
    assert numbers_later.memory.last.peak_bytes < MB
    assert len(kept) == 6
