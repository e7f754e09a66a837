"""Opening and closing of owners, in any order, by any kind of `with`, at any depth, under any number of names."""

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from memtools.ledger import Meter, Owner, active_owner, open_owners, statistics
from memtools.ledger import _frames as frames
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import MAX_NAME_LENGTH, MAX_NAMES, OTHER
from memtools.scopes import memory_scope

MB = 1_000_000


def near(truth: int) -> Any:
    # Any: what pytest.approx returns has no public type.
    return pytest.approx(truth, rel=0.02, abs=64_000)


def scope(name: str, **options: Any) -> memory_scope:
    return memory_scope(name, meter="tracemalloc", **options)


@contextlib.contextmanager
def by_generator(name: str) -> Iterator[memory_scope]:
    with scope(name) as opened:
        yield opened


@contextlib.asynccontextmanager
async def by_async_generator(name: str) -> AsyncIterator[memory_scope]:
    await asyncio.sleep(0)
    async with scope(name) as opened:
        yield opened


def test_usage_of_an_open_scope_is_current(session: Meter) -> None:
    with scope("open") as opened:
        block = bytearray(10 * MB)
        at_peak = opened.usage
        del block
        after = opened.usage

    assert (at_peak.retained_bytes, at_peak.peak_bytes) == (near(10 * MB), near(10 * MB))
    assert (after.retained_bytes, after.peak_bytes) == (near(0), near(10 * MB))
    assert opened.owner.live_bytes == opened.usage.retained_bytes


def test_scopes_closed_out_of_order_are_charged_while_open(session: Meter) -> None:
    store: list[bytearray] = []
    outer = open_owner("outer", "scope", meter=session)
    inner = open_owner("inner", "scope", meter=session)
    store.append(bytearray(10 * MB))

    close_owner(outer)
    store.append(bytearray(5 * MB))
    close_owner(inner)

    assert outer.live_bytes == near(10 * MB)
    assert inner.live_bytes == near(15 * MB)
    assert active_owner() is None


def test_middle_of_three_owners_may_close_first(session: Meter) -> None:
    store: list[bytearray] = []
    owners = [open_owner(name, "scope", meter=session) for name in ("outer", "middle", "inner")]
    close_owner(owners[1])
    store.append(bytearray(4 * MB))
    close_owner(owners[2])
    store.append(bytearray(2 * MB))
    close_owner(owners[0])

    assert [owner.live_bytes for owner in owners] == [near(6 * MB), near(0), near(4 * MB)]


def test_owner_closed_twice_keeps_its_usage(session: Meter) -> None:
    owner = open_owner("once", "scope", meter=session)

    close_owner(owner)
    usage = owner.usage
    close_owner(owner)

    assert usage is not None
    assert owner.usage == usage


def test_sync_ways_of_entering_a_scope_agree(session: Meter) -> None:
    store: list[bytearray] = []

    with by_generator("generator") as generator, contextlib.nullcontext():
        store.append(bytearray(3 * MB))
    with contextlib.ExitStack() as stack:
        stacked = stack.enter_context(by_generator("stacked"))
        stack.enter_context(contextlib.nullcontext())
        store.append(bytearray(3 * MB))

    assert [opened.usage.retained_bytes for opened in (generator, stacked)] == [near(3 * MB)] * 2
    assert generator.usage.exact
    assert stacked.usage.exact


@pytest.mark.parametrize("is_tracked", [True, False])
async def test_async_ways_of_entering_a_scope_agree(session: Meter, is_tracked: bool) -> None:
    if not is_tracked and sys.version_info < (3, 12):
        pytest.skip("sys.monitoring came with Python 3.12")
    found: list[memory_scope] = []

    async def call() -> None:
        store: list[bytearray] = []
        async with by_async_generator("generator") as generator, contextlib.nullcontext():
            await asyncio.sleep(0.001)
            store.append(bytearray(3 * MB))
            await asyncio.sleep(0.001)
        async with contextlib.AsyncExitStack() as stack:
            stacked = await stack.enter_async_context(by_async_generator("stacked"))
            nested = stack.enter_context(by_generator("nested"))
            await asyncio.sleep(0.001)
            store.append(bytearray(3 * MB))
            await asyncio.sleep(0.001)
        found.extend((generator, stacked, nested))

    async def noisy() -> None:
        kept = []
        for _ in range(8):
            kept.append(bytearray(5 * MB))
            await asyncio.sleep(0.0005)

    inner = call()
    other = TrackedCoroutine(noisy(), session, name="noisy") if is_tracked else noisy()
    await asyncio.gather(TrackedCoroutine(inner, session, name="call", kind="call") if is_tracked else inner, other)

    assert [opened.usage.retained_bytes for opened in found] == [near(3 * MB)] * 3
    if is_tracked or session.name == "native":
        assert [opened.usage.note for opened in found] == [""] * 3


async def test_untracked_scope_says_that_it_is_process_wide(session: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "is_available", lambda: False)  # 3.11, or no tool id left
    store: list[bytearray] = []

    async def noisy() -> None:
        store.append(bytearray(30 * MB))

    async def call() -> memory_scope:
        async with scope("alone") as opened:
            store.append(bytearray(5 * MB))
            await asyncio.sleep(0.001)
        return opened

    opened, _ = await asyncio.gather(call(), noisy())

    assert not opened.usage.exact
    assert "process-wide" in opened.usage.note
    assert opened.usage.retained_bytes == near(35 * MB)


def test_frames_are_unavailable_when_all_tool_ids_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.version_info < (3, 12):
        assert not frames.is_available()
        return
    monkeypatch.setattr(frames, "_tool", None)
    monkeypatch.setattr(frames, "_TOOL_IDS", ())

    assert not frames.is_available()


async def test_scope_that_outlives_its_function_becomes_untracked(session: Meter) -> None:
    store: list[bytearray] = []

    def open_for(stack: contextlib.ExitStack) -> memory_scope:
        return stack.enter_context(scope("opened for another"))

    async def noisy() -> None:
        store.append(bytearray(30 * MB))

    async def call() -> memory_scope:
        with contextlib.ExitStack() as stack:
            opened = open_for(stack)
            store.append(bytearray(5 * MB))
            await asyncio.sleep(0.002)
        return opened

    opened, _ = await asyncio.gather(call(), noisy())

    assert not opened.usage.exact
    assert opened.usage.peak_bytes >= 35 * MB


def test_scope_that_outlives_its_function_on_trio_is_untracked(session: Meter) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")

    def open_for(stack: contextlib.ExitStack) -> memory_scope:
        return stack.enter_context(scope("opened for another"))

    async def main() -> memory_scope:
        with contextlib.ExitStack() as stack:
            opened = open_for(stack)
            await trio.sleep(0.002)
        return opened

    assert not trio.run(main).usage.exact


async def test_scope_that_outlives_its_coroutine_becomes_untracked(session: Meter) -> None:
    async def open_for(stack: contextlib.AsyncExitStack) -> memory_scope:
        return await stack.enter_async_context(scope("opened for another"))

    async with contextlib.AsyncExitStack() as stack:
        opened = await open_for(stack)
        await asyncio.sleep(0.002)

    assert not opened.usage.exact


async def test_untracked_child_leaves_its_parent_exact(session: Meter) -> None:
    store: list[bytearray] = []
    parent = open_owner("parent", "scope", meter=session)
    lost = open_owner("lost", "scope", meter=session)
    store.append(bytearray(4 * MB))

    session.mark_untracked(lost, "process-wide")
    store.append(bytearray(2 * MB))
    close_owner(lost)
    close_owner(parent)

    assert parent.live_bytes == near(6 * MB)
    assert parent.usage is not None
    assert parent.usage.exact
    assert lost.live_bytes == near(6 * MB)


async def test_many_scopes_in_one_step_schedule_one_callback(session: Meter) -> None:
    def sync_work() -> int:
        with scope("short") as opened:
            pass
        return opened.usage.retained_bytes

    loop: Any = asyncio.get_running_loop()
    before = len(loop._ready)

    figures = [sync_work() for _ in range(200)]

    assert len(loop._ready) - before <= 1
    assert max(figures) < 2_000


def test_recursion_five_hundred_deep_is_one_account(session: Meter, accounts: Any) -> None:
    def descend(depth: int) -> None:
        with scope("descend"):
            if depth:
                descend(depth - 1)

    descend(499)

    entry = accounts["descend"]
    assert (entry.started, entry.active, entry.children) == (500, 0, ())


def test_ten_thousand_names_make_bounded_accounts(accounts: Any) -> None:
    for number in range(10_000):
        close_owner(open_owner(f"request {number}", "scope"))

    names = accounts.names()
    assert len(names) == MAX_NAMES + 1
    assert accounts[OTHER].started == 10_000 - MAX_NAMES


def test_endlessly_nested_names_make_bounded_accounts(accounts: Any) -> None:
    owners = []
    for number in range(6_000):
        owners.append(open_owner(f"level {number}", "scope"))
        if len(owners) == 100:
            while owners:
                close_owner(owners.pop())
    while owners:
        close_owner(owners.pop())

    def count(entries: Any) -> int:
        return sum(1 + count(entry.children) for entry in entries)

    assert count(statistics().accounts) <= 4_096 + 4_096


def test_long_name_is_truncated(accounts: Any) -> None:
    close_owner(open_owner("n" * 10_000, "scope"))

    assert accounts.names() == ["n" * MAX_NAME_LENGTH]


def test_rss_scope_says_that_it_is_process_wide() -> None:
    with memory_scope("rss", meter="rss") as opened:
        # Written, so that it is resident; too large for memory that the allocator has kept.
        block = bytes(80 * MB).replace(b"\0", b"x")

    assert not opened.usage.exact
    assert opened.usage.peak_bytes > 70 * MB
    del block


class Failed(Exception):
    pass


def test_closed_scope_keeps_no_exception_and_no_frame(session: Meter) -> None:
    class Canary:
        pass

    canaries: list[weakref.ref[Canary]] = []

    async def fails() -> None:
        canary = Canary()
        canaries.append(weakref.ref(canary))
        await asyncio.sleep(0)
        raise Failed

    async def times_out() -> None:
        canary = Canary()
        canaries.append(weakref.ref(canary))
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.ensure_future(TrackedCoroutine(fails(), session, name="fails"))
        with contextlib.suppress(Failed):
            await task
        del task
        task = asyncio.ensure_future(TrackedCoroutine(times_out(), session, name="times out"))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        closed = TrackedCoroutine(fails(), session, name="closed")
        closed.send(None)
        closed.close()
        del closed

    gc.collect()
    gc.disable()
    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        alive = [canary for canary in canaries if canary() is not None]
    finally:
        gc.enable()

    assert len(canaries) == 3
    assert alive == []


def test_owners_and_trackers_are_freed_without_the_collector(session: Meter) -> None:
    async def call() -> None:
        async with scope("inside"):
            await asyncio.sleep(0)

    owners: list[weakref.ref[Owner]] = []
    tracked_coroutines: list[weakref.ref[TrackedCoroutine[None]]] = []

    async def main() -> None:
        tracked = TrackedCoroutine(
            call(), session, name="call", on_end=lambda owner, _: owners.append(weakref.ref(owner))
        )
        tracked_coroutines.append(weakref.ref(tracked))
        await asyncio.ensure_future(tracked)

    gc.collect()
    gc.disable()
    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        del loop
        alive = [found for found in (*owners, *tracked_coroutines) if found() is not None]
    finally:
        gc.enable()

    assert alive == []


async def test_pending_task_dropped_with_its_loop_is_closed(session: Meter) -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    tracked = TrackedCoroutine(waits(), session, name="waits")
    tracked.send(None)
    assert [owner.name for owner in open_owners()] == ["waits"]

    del tracked

    assert open_owners() == ()


async def test_chain_of_ten_thousand_tasks_keeps_no_owner(session: Meter, accounts: Any) -> None:
    owners: weakref.WeakSet[Owner] = weakref.WeakSet()
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tasks: set[asyncio.Task[None]] = set()
    most = 0

    async def link(number: int) -> None:
        nonlocal most
        owner = active_owner()
        assert owner is not None
        owners.add(owner)
        if number % 1000 == 0:
            most = max(most, len(owners))
        if number == 10_000:
            done.set_result(most)
            return
        task = asyncio.ensure_future(TrackedCoroutine(link(number + 1), session, name="link"))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(0)

    await TrackedCoroutine(link(0), session, name="link")

    assert await done < 50
    await asyncio.sleep(0.01)
    assert accounts["link"].started == 10_001


def test_name_cannot_forge_a_line_of_a_log(session: Meter) -> None:
    owner = open_owner("job\nERROR all is lost\x1b[31m\u202e", "scope", meter=session)
    close_owner(owner)

    assert owner.name == r"job\nERROR all is lost\x1b[31m\u202e"
