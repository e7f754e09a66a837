"""`task_scope`: owners of its tasks, usage by name, budget and warning."""

import asyncio
import tracemalloc
from contextvars import copy_context
from typing import Any

import pytest

from memtools.errors import BudgetExceeded
from memtools.events import Event, HighUsage, ScopeEnded, subscribe
from memtools.ledger import active_owner, open_owners, track_tasks
from memtools.scopes import memory_scope, task_scope

MIB = 2**20


async def hold_bytes(size: int, release: asyncio.Event | None = None) -> int:
    block = bytearray(size)
    await (asyncio.sleep(0) if release is None else release.wait())
    return len(block)


def current_path() -> tuple[str, ...]:
    owner = active_owner()
    return () if owner is None else owner.path


async def current_path_later() -> tuple[str, ...]:
    await asyncio.sleep(0)
    return current_path()


async def test_interleaved_tasks_have_separate_exact_usage() -> None:
    async with task_scope(meter="tracemalloc") as tasks:
        for _ in range(3):
            tasks.create_task(hold_bytes(4 * MIB), name="large")
            tasks.create_task(hold_bytes(MIB), name="small")

    usage = tasks.usage_by_name()
    assert 4 * MIB <= (usage["large"].peak_bytes or 0) < 4.5 * MIB
    assert MIB <= (usage["small"].peak_bytes or 0) < 1.5 * MIB
    assert (usage["large"].started, usage["large"].finished, usage["large"].steps) == (3, 3, 6)
    assert usage["large"].meter == "tracemalloc"
    assert "large: 3 tasks, peak 4.0 MiB" in str(usage["large"])


async def test_usage_includes_unfinished_tasks() -> None:
    release = asyncio.Event()
    async with task_scope(meter="tracemalloc") as tasks:
        tasks.create_task(hold_bytes(3 * MIB, release), name="held")
        await asyncio.sleep(0)
        open_now = tasks.usage_by_name()["held"]
        release.set()
    closed = tasks.usage_by_name()["held"]

    assert open_now.running == 1
    assert (open_now.retained_bytes or 0) >= 3 * MIB
    assert closed.running == 0
    assert (closed.retained_bytes or 0) < MIB
    assert closed.duration_s > 0


async def test_meter_without_figures_per_task_shows_no_bytes() -> None:
    async with task_scope(meter="rss") as tasks:
        tasks.create_task(hold_bytes(MIB))
        await asyncio.sleep(0)
        assert [owner.kind for owner in open_owners()] == ["scope"]

    usage = tasks.usage_by_name()["hold_bytes"]
    assert (usage.peak_bytes, usage.retained_bytes, usage.steps, usage.exact) == (None, None, None, False)
    assert "cannot tell tasks apart" in usage.note
    assert (usage.finished, usage.to_dict()["finished"]) == (1, 1)
    assert tasks.usage.meter == "rss"


@pytest.mark.parametrize("meter", ["tracemalloc", "rss"])
@pytest.mark.parametrize("settings", [{}, {"max_running": 1}])
async def test_task_belongs_to_the_scope_wherever_it_is_created(meter: str, settings: dict[str, Any]) -> None:
    async def create(tasks: task_scope, name: str) -> "asyncio.Task[tuple[str, ...]]":
        return tasks.create_task(current_path_later(), name=name)

    with memory_scope("elsewhere", meter=meter):
        other_context = copy_context()
    async with task_scope(meter=meter, name="import", **settings) as tasks:
        inside = await create(tasks, "a")
        with memory_scope("deeper", meter=meter):
            deeper = await create(tasks, "b")
        outside = await asyncio.get_running_loop().create_task(create(tasks, "c"), context=other_context)
        given = tasks.create_task(current_path_later(), name="d", context=copy_context())

    own = meter == "tracemalloc"
    expected = [("import", name) if own else ("import",) for name in "abcd"]
    assert [task.result() for task in (inside, deeper, outside, given)] == expected


async def test_scope_is_charged_for_its_tasks() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        async with task_scope(meter="tracemalloc", name="import") as tasks:
            tasks.create_task(hold_bytes(2 * MIB), name="one")
            tasks.create_task(hold_bytes(3 * MIB), name="two")

    assert 5 * MIB <= tasks.usage.peak_bytes < 6 * MIB
    ended = [(event.kind, event.name) for event in events if isinstance(event, ScopeEnded)]
    assert ended == [("task", "one"), ("task", "two"), ("scope", "import")]


async def test_usage_by_name_is_bounded() -> None:
    async with task_scope() as tasks:
        for number in range(400):
            tasks.create_task(asyncio.sleep(0), name=f"request {number}")
        tasks.create_task(asyncio.sleep(0), name="x" * 1000)

    assert len(tasks.usage_by_name()) == 257
    assert tasks.usage_by_name()["<other>"].finished == 145
    assert tasks.statistics().finished == 401


async def test_failures_beyond_the_bound_keep_their_task_names() -> None:
    async def fail() -> None:
        raise ValueError

    async with task_scope(on_error="record", meter="tracemalloc") as tasks:
        for number in range(300):
            tasks.create_task(fail(), name=f"request {number}")

    assert tasks.usage_by_name()["request 7"].failed == 1
    assert tasks.errors()[-1].name == "request 299"


async def test_budget_of_the_scope_stops_the_task_that_exceeds_it() -> None:
    async def take(size: int) -> None:
        block = bytearray(size)
        for _ in range(5):
            await asyncio.sleep(0)
        del block

    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012  # the block is what raises
        async with task_scope(meter="tracemalloc", name="import", budget="5 MiB", inexact="raise") as tasks:
            for _ in range(3):
                tasks.create_task(take(2 * MIB))

    assert [type(error) for error in raised.value.exceptions] == [BudgetExceeded]
    error = raised.value.exceptions[0]
    assert isinstance(error, BudgetExceeded)
    assert (error.scope, error.budget_bytes) == ("import", 5 * MIB)
    assert error.used_bytes >= 6 * MIB


async def test_budget_is_also_checked_at_the_end_of_the_block() -> None:
    with pytest.raises(BudgetExceeded, match="import used"):
        async with task_scope(meter="tracemalloc", name="import", budget="1 MiB", inexact="raise"):
            block = bytearray(2 * MIB)
    del block


async def test_warning_names_the_largest_tasks() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        async with task_scope(meter="tracemalloc", name="import with a warning", warn="1 MiB") as tasks:
            tasks.create_task(hold_bytes(2 * MIB), name="one")

    high = next(event for event in events if isinstance(event, HighUsage))
    assert high.name == "import with a warning"
    assert high.largest[0][0] == "one"


@pytest.mark.parametrize("settings", [{}, {"max_running": 1}])
async def test_task_in_a_tracked_loop_has_one_owner(settings: dict[str, Any]) -> None:
    events: list[Event] = []
    with subscribe(events.append), track_tasks(meter="tracemalloc"):
        async with task_scope(meter="tracemalloc", name="import", **settings) as tasks:
            tasks.create_task(hold_bytes(MIB), name="one")
            tasks.create_task(hold_bytes(MIB), name="one")

    assert [event.name for event in events if isinstance(event, ScopeEnded)] == ["one", "one", "import"]
    assert tasks.usage_by_name()["one"].finished == 2


async def test_failed_scopes_leave_no_owner_and_no_tracing() -> None:
    async def fail() -> None:
        raise ValueError

    for settings in ({}, {"max_running": 1}):
        with pytest.raises(ExceptionGroup):  # noqa: PT012  # the block is what raises
            async with task_scope(meter="tracemalloc", **settings) as tasks:
                tasks.create_task(fail())
                tasks.create_task(asyncio.Event().wait())
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), task_scope(meter="tracemalloc", **settings) as tasks:
                tasks.create_task(asyncio.Event().wait())

    assert open_owners() == ()
    assert not tracemalloc.is_tracing()
