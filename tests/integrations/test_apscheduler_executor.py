"""MemoryExecutor in schedulers of APScheduler 3."""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

from memtools import ConfigError
from memtools.errors import BudgetExceeded
from memtools.integrations.apscheduler import MemoryExecutor
from memtools.ledger import AccountStatistics, active_owner, choose_meter, forget_accounts, statistics

MIB = 2**20
TIMEOUT_S = 30

needs_native = pytest.mark.skipif(choose_meter().name != "native", reason="only the native meter counts to the byte")

kept: list[bytes] = []


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    yield
    forget_accounts()
    kept.clear()


def _accounts() -> dict[str, AccountStatistics]:
    return {account.name: account for account in statistics().accounts if account.kind == "scope"}


def keep(size_bytes: int) -> str | None:
    kept.append(b"x" * size_bytes)
    owner = active_owner()
    return owner.name if owner else None


async def keep_later(size_bytes: int) -> str | None:
    await asyncio.sleep(0)
    return keep(size_bytes)


async def _run_on_loop(executor: Any, jobs: list[tuple[Callable[..., Any], dict[str, Any]]]) -> list[JobExecutionEvent]:
    """Run each job once; return the events of their ends."""
    events: list[JobExecutionEvent] = []
    all_ended = asyncio.Event()

    def note(event: JobExecutionEvent) -> None:
        events.append(event)
        if len(events) == len(jobs):
            all_ended.set()

    scheduler = AsyncIOScheduler(executors={"default": executor})
    scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    for func, options in jobs:
        scheduler.add_job(func, misfire_grace_time=None, **options)
    scheduler.start()
    await asyncio.wait_for(all_ended.wait(), TIMEOUT_S)
    scheduler.shutdown()
    await asyncio.sleep(0)
    return events


class TestMemoryExecutor:
    @pytest.mark.leaves("thread", reason="asyncio keeps the threads of its default executor until the loop closes")
    async def test_jobs_on_a_loop_are_charged_by_name(self) -> None:
        jobs = [
            (keep_later, {"args": [1000], "name": "nightly"}),
            (keep, {"args": [1000]}),
            (functools.partial(keep, 1000), {"name": "partial"}),
        ]

        events = await _run_on_loop(MemoryExecutor(AsyncIOExecutor()), jobs)

        assert {event.retval for event in events} == {"nightly", "keep", "partial"}
        assert {name: account.started for name, account in _accounts().items()} == {
            "nightly": 1,
            "keep": 1,
            "partial": 1,
        }

    @needs_native
    async def test_runs_of_a_job_are_charged_to_the_byte(self) -> None:
        jobs = [(keep_later, {"args": [MIB]})] * 20

        await _run_on_loop(MemoryExecutor(AsyncIOExecutor()), jobs)

        assert _accounts()["keep_later"].retained_bytes == pytest.approx(20 * MIB, rel=0.02)

    @needs_native
    async def test_run_over_its_budget_fails_and_others_go_on(self) -> None:
        jobs = [(keep_later, {"args": [20 * MIB]}), (keep_later, {"args": [1000]})]

        events = await _run_on_loop(MemoryExecutor(AsyncIOExecutor(), budget="8 MiB"), jobs)

        assert [type(event.exception) for event in events if event.exception] == [BudgetExceeded]
        assert len(events) == 2

    def test_jobs_in_threads_are_charged(self) -> None:
        scheduler = BackgroundScheduler(executors={"default": MemoryExecutor(ThreadPoolExecutor(2))})
        ended = threading.Event()
        events: list[JobExecutionEvent] = []

        def note(event: JobExecutionEvent) -> None:
            events.append(event)
            if len(events) == 3:
                ended.set()

        scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        job = scheduler.add_job(keep, "interval", [1000], seconds=0.02, misfire_grace_time=None, max_instances=3)
        scheduler.start()
        is_ended = ended.wait(TIMEOUT_S)
        stored = scheduler.get_job(job.id)
        scheduler.shutdown()

        assert is_ended
        assert {event.retval for event in events} == {"keep"}
        assert stored.func is keep

    def test_executor_of_processes_is_refused(self) -> None:
        executor = ProcessPoolExecutor(1)
        try:
            with pytest.raises(ConfigError, match="not in processes"):
                MemoryExecutor(executor)
        finally:
            executor.shutdown()

    @pytest.mark.parametrize("options", [{"executor": 7}, {"warn": "much"}, {"budget": -1}])
    def test_senseless_option_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(options))):
            MemoryExecutor(**{"executor": AsyncIOExecutor()} | options)
