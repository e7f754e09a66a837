"""Whatever is created, cancelled and ended in whatever order: the limit holds, and nobody is lost."""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools.scopes import ScopeFull, task_scope

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.just(0)),
        st.tuples(st.just("spawn"), st.just(0)),
        st.tuples(st.sampled_from(["cancel", "end", "fail", "give up"]), st.integers(0, 8)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=40,
)


def close_unstarted(spawning: "asyncio.Future[Any]", coro: Coroutine[Any, Any, None]) -> None:
    # A spawn() that is cancelled before its own first step has not seen its argument, and cannot close it.
    if spawning.cancelled() and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
        coro.close()


class Play:
    """One scope, and the tasks that are acted upon."""

    def __init__(self, tasks: task_scope, limit: int) -> None:
        self.tasks = tasks
        self.limit = limit
        self.running = 0
        self.begun: list[int] = []
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.created: list[asyncio.Task[Any]] = []
        self.spawning: list[asyncio.Task[Any]] = []
        self.refused = 0

    async def work(self, number: int) -> None:
        assert self.running < self.limit
        self.running += 1
        self.begun.append(number)
        self.ends[number] = asyncio.get_running_loop().create_future()
        try:
            await self.ends[number]
        finally:
            self.running -= 1

    async def act(self, what: str, which: int) -> None:
        if what == "create":
            try:
                self.created.append(self.tasks.create_task(self.work(len(self.created))))
            except ScopeFull:
                self.refused += 1
        elif what == "spawn":
            work = self.work(1000 + len(self.spawning))
            spawning = asyncio.ensure_future(self.tasks.spawn(work))
            spawning.add_done_callback(lambda spawning: close_unstarted(spawning, work))
            self.spawning.append(spawning)
        elif what == "turn":
            await asyncio.sleep(0)
        elif what == "cancel" and which < len(self.created):
            self.created[which].cancel()
        elif what == "give up" and which < len(self.spawning):
            self.spawning[which].cancel()
        elif which in self.ends and not self.ends[which].done():
            if what == "end":
                self.ends[which].set_result(None)
            elif what == "fail":
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
        raise AssertionError(f"some do not end: {self.tasks}")


@pytest.mark.parametrize("meter", ["rss", "tracemalloc"])
@settings(max_examples=30)
@given(acts=ACTS, limit=st.integers(1, 3), max_pending=st.one_of(st.none(), st.integers(0, 3)))
def test_the_limit_holds_and_every_task_is_counted_once(
    acts: list[tuple[str, int]], limit: int, max_pending: int | None, meter: str
) -> None:
    async def main() -> None:
        async with task_scope(limit, on_error="record", max_pending=max_pending, meter=meter) as tasks:
            play = Play(tasks, limit)
            for what, which in acts:
                await play.act(what, which)
                statistics = tasks.statistics()
                assert statistics.running <= limit
                assert statistics.waiting >= 0
            await play.end_all()

        created = [number for number in play.begun if number < 1000]
        assert created == sorted(created)  # turns are taken in order
        statistics = tasks.statistics()
        ended = statistics.finished + statistics.failed + statistics.cancelled
        usage = tasks.usage_by_name()
        assert ended == sum(one.started for one in usage.values())
        assert ended >= len(play.created)
        assert (statistics.running, statistics.waiting, statistics.abandoned) == (0, 0, 0)
        assert [failure.kind for failure in tasks.errors()] == ["ValueError"] * statistics.failed  # no AssertionError

    asyncio.run(main())
