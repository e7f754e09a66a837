"""`task_scope` under random sequences of creating, cancelling and ending tasks."""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools.scopes import ScopeFull, task_scope

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.just(0)),
        st.tuples(st.just("spawn"), st.just(0)),
        st.tuples(st.sampled_from(["cancel", "end", "fail", "cancel spawn"]), st.integers(0, 8)),
        st.tuples(st.just("run loop"), st.just(0)),
    ),
    max_size=40,
)


def close_unstarted(spawning: "asyncio.Future[Any]", coro: Coroutine[Any, Any, None]) -> None:
    # A spawn() that is cancelled before its own first step has not seen its argument, and cannot close it.
    if spawning.cancelled() and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
        coro.close()


class ScopeDriver:
    """One scope, and the tasks that the actions are applied to."""

    def __init__(self, tasks: task_scope, limit: int) -> None:
        self.tasks = tasks
        self.limit = limit
        self.running = 0
        self.started: list[int] = []
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.created: list[asyncio.Task[Any]] = []
        self.spawning: list[asyncio.Task[Any]] = []
        self.refused = 0

    async def work(self, number: int) -> None:
        assert self.running < self.limit
        self.running += 1
        self.started.append(number)
        self.ends[number] = asyncio.get_running_loop().create_future()
        try:
            await self.ends[number]
        finally:
            self.running -= 1

    async def act(self, action: str, which: int) -> None:
        if action == "create":
            try:
                self.created.append(self.tasks.create_task(self.work(len(self.created))))
            except ScopeFull:
                self.refused += 1
        elif action == "spawn":
            work = self.work(1000 + len(self.spawning))
            spawning = asyncio.ensure_future(self.tasks.spawn(work))
            spawning.add_done_callback(lambda spawning: close_unstarted(spawning, work))
            self.spawning.append(spawning)
        elif action == "run loop":
            await asyncio.sleep(0)
        elif action == "cancel" and which < len(self.created):
            self.created[which].cancel()
        elif action == "cancel spawn" and which < len(self.spawning):
            self.spawning[which].cancel()
        elif which in self.ends and not self.ends[which].done():
            if action == "end":
                self.ends[which].set_result(None)
            elif action == "fail":
                self.ends[which].set_exception(ValueError(which))

    async def end_all(self) -> None:
        for _ in range(1_000):
            for end in self.ends.values():
                if not end.done():
                    end.set_result(None)
            statistics = self.tasks.statistics()
            if not statistics.running and not statistics.waiting and all(task.done() for task in self.spawning):
                return
            await asyncio.sleep(0)
        raise AssertionError(f"some tasks do not end: {self.tasks}")


@pytest.mark.parametrize("meter", ["rss", "tracemalloc"])
@settings(max_examples=30)
@given(actions=ACTIONS, limit=st.integers(1, 3), max_pending=st.one_of(st.none(), st.integers(0, 3)))
def test_max_running_holds_and_every_task_is_counted_once(
    actions: list[tuple[str, int]], limit: int, max_pending: int | None, meter: str
) -> None:
    async def main() -> None:
        async with task_scope(limit, on_error="record", max_pending=max_pending, meter=meter) as tasks:
            driver = ScopeDriver(tasks, limit)
            for action, which in actions:
                await driver.act(action, which)
                statistics = tasks.statistics()
                assert statistics.running <= limit
                assert statistics.waiting >= 0
            await driver.end_all()

        created = [number for number in driver.started if number < 1000]
        assert created == sorted(created)  # tasks start in order
        statistics = tasks.statistics()
        ended = statistics.finished + statistics.failed + statistics.cancelled
        usage = tasks.usage_by_name()
        assert ended == sum(of_name.started for of_name in usage.values())
        assert ended >= len(driver.created)
        assert (statistics.running, statistics.waiting, statistics.abandoned) == (0, 0, 0)
        assert [failure.kind for failure in tasks.errors()] == ["ValueError"] * statistics.failed  # no AssertionError

    asyncio.run(main())
