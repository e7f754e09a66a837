"""Budgets that are checked after each step of a coroutine: the error is raised once, for the innermost owner first."""

import asyncio
import gc
import logging
import mmap
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, subscribe
from memtools.ledger import Budget, Meter, Owner, choose_meter
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._owner import OnExceed

MB = 1_000_000


def budgeted(inner: Coroutine[Any, Any, Any], name: str, limit: int, **options: Any) -> TrackedCoroutine[Any]:
    meter = choose_meter(options.pop("meter", "tracemalloc"))
    return TrackedCoroutine(inner, meter, name=name, kind="call", budget=Budget(limit, **options))


def fresh_pages() -> mmap.mmap:
    """A megabyte of new pages: the heap may have free memory, which would not make the process grow."""
    made = mmap.mmap(-1, MB)
    made.write(b"x" * MB)
    return made


async def grows(store: list[Any], steps: int = 20, make: Callable[[], object] = lambda: bytearray(b"x" * MB)) -> None:
    for _ in range(steps):
        store.append(make())
        await asyncio.sleep(0)


@pytest.mark.parametrize("meter", ["tracemalloc", "rss"])
async def test_call_over_budget_is_stopped_at_its_next_step(meter: str) -> None:
    store: list[bytearray] = []
    limit = 5 * MB if meter == "tracemalloc" else 60 * MB
    work = grows(store, 300) if meter == "tracemalloc" else grows(store, 300, fresh_pages)
    owners: list[Owner] = []
    tracked = budgeted(work, "report", limit, meter=meter, inexact="raise")
    tracked.on_end = lambda owner, _: owners.append(owner)
    gc.collect()  # garbage of earlier tests would be given back meanwhile, and the process would grow by less

    with pytest.raises(BudgetExceeded) as caught:
        await asyncio.ensure_future(tracked)

    assert (caught.value.scope, caught.value.budget_bytes) == ("report", limit)
    assert caught.value.used_bytes > limit
    assert len(store) <= limit / MB + 40
    assert tracked.owner is None
    assert [owner.exceeded_reported for owner in owners] == [True]


async def test_task_is_not_stopped_for_bytes_of_another_task(session: Meter) -> None:
    store: list[bytearray] = []

    async def modest() -> str:
        for _ in range(30):
            await asyncio.sleep(0)
        return "done"

    greedy, other = await asyncio.gather(
        budgeted(grows(store), "greedy", 5 * MB), budgeted(modest(), "modest", 5 * MB), return_exceptions=True
    )

    assert isinstance(greedy, BudgetExceeded)
    assert other == "done"


async def test_task_is_not_stopped_for_rss_budget_of_another_task() -> None:
    store: list[bytearray] = []

    async def modest() -> str:
        for _ in range(400):
            await asyncio.sleep(0)
        return "done"

    meter = choose_meter("rss")
    greedy, other = await asyncio.gather(
        budgeted(grows(store, 300, fresh_pages), "greedy", 60 * MB, meter="rss", inexact="raise"),
        TrackedCoroutine(modest(), meter, name="modest"),
        return_exceptions=True,
    )

    assert isinstance(greedy, BudgetExceeded)
    assert other == "done"


async def test_exceeded_budget_is_emitted_once_and_may_be_handled(session: Meter) -> None:
    store: list[bytearray] = []
    events: list[Any] = []

    async def handles() -> str:
        try:
            await grows(store)
        except BudgetExceeded:
            store.clear()
            await grows(store)
        return "went on"

    with subscribe(events.append):
        assert await budgeted(handles(), "handles", 5 * MB) == "went on"

    overruns = [event for event in events if isinstance(event, BudgetOverrun)]
    assert [(event.name, event.in_flight) for event in overruns] == [("handles", True)]


async def test_innermost_owner_over_budget_is_named_first(session: Meter) -> None:
    store: list[bytearray] = []
    raised: list[str] = []

    async def outer() -> None:
        try:
            await budgeted(grows(store), "inner", 5 * MB)
        except BudgetExceeded as error:
            raised.append(error.scope)
        await grows(store)

    with pytest.raises(BudgetExceeded) as caught:
        await budgeted(outer(), "outer", 10 * MB)

    assert [*raised, caught.value.scope] == ["inner", "outer"]


async def test_budget_of_a_parent_includes_its_children(session: Meter) -> None:
    store: list[bytearray] = []

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(TrackedCoroutine(grows(store), session, name="child"))

    with pytest.raises(ExceptionGroup) as caught:
        await budgeted(parent(), "parent", 9 * MB)

    (error,) = caught.value.exceptions
    assert isinstance(error, BudgetExceeded)
    assert error.scope == "parent"
    assert len(store) <= 12  # each of the three may have had one more step


def ignores(error: BudgetExceeded) -> None:
    raise RuntimeError(f"broken hook for {error.scope}")


@pytest.mark.parametrize("on_exceed", ["warn", ignores])
async def test_warning_or_failing_hook_does_not_stop_the_call(
    session: Meter, caplog: pytest.LogCaptureFixture, on_exceed: OnExceed
) -> None:
    store: list[bytearray] = []

    with caplog.at_level(logging.WARNING, logger="memtools"):
        await budgeted(grows(store), "goes on", 5 * MB, on_exceed=on_exceed)

    assert len(store) == 20
    assert len([record for record in caplog.records if "goes on" in record.getMessage()]) == 1


async def test_soft_budget_is_not_checked_in_flight(session: Meter) -> None:
    store: list[bytearray] = []

    await budgeted(grows(store), "soft", 5 * MB, hard=False)

    assert len(store) == 20


class SlowBlock:
    """A block that takes steps to be entered and left."""

    def __init__(self) -> None:
        self.entered = self.left = False

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.entered = True

    async def __aexit__(self, *about: object) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.left = True


@pytest.mark.parametrize("place", ["exit", "finally", "except"])
async def test_coroutine_is_not_stopped_while_it_cleans_up(place: str) -> None:
    store: list[bytearray] = []
    block = SlowBlock()

    async def work() -> None:
        if place == "exit":
            async with block:
                store.append(bytearray(5 * MB + MB // 4))
        elif place == "finally":
            try:
                store.append(bytearray(5 * MB + MB // 4))
            finally:
                await block.__aexit__()
        else:
            try:
                store.append(bytearray(5 * MB + MB // 4))
                raise KeyError
            except KeyError:
                await block.__aexit__()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.raises(BudgetExceeded):
        await asyncio.ensure_future(budgeted(work(), "report", 5 * MB))

    assert block.left
