"""The steps of tracked coroutines: exceptions thrown in, cancellation, close, eager start, and what debuggers see."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from memtools.ledger import Meter, Owner, active_owner
from memtools.ledger._context import current_tracker
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import Kind
from memtools.scopes import memory_scope

MB = 1_000_000


def near(truth: int) -> Any:
    # Any: what pytest.approx returns has no public type.
    return pytest.approx(truth, rel=0.02, abs=64_000)


_ended: weakref.WeakKeyDictionary[TrackedCoroutine[Any], Owner] = weakref.WeakKeyDictionary()


def track(
    inner: Coroutine[Any, Any, Any],
    meter: Meter,
    name: str | None = "call",
    kind: Kind = "call",
    include_children: bool = True,
) -> TrackedCoroutine[Any]:
    def keep(owner: Owner, _error: BaseException | None) -> None:
        _ended[tracked] = owner

    tracked = TrackedCoroutine(inner, meter, name=name, kind=kind, include_children=include_children, on_end=keep)
    return tracked


def ended(tracked: TrackedCoroutine[Any]) -> Owner:
    assert tracked.owner is None
    assert _ended[tracked].usage is not None
    return _ended[tracked]


async def bystander(meter: Meter) -> int:
    """Run short steps, and return what the owner was charged with."""

    async def steps() -> None:
        for _ in range(30):
            await asyncio.sleep(0.001)

    tracked = track(steps(), meter, "bystander")
    await tracked
    return ended(tracked).usage.retained_bytes  # type: ignore[union-attr]  # `ended` has looked


async def cleans_up(store: list[bytearray], during: asyncio.Event) -> None:
    block = bytearray(30 * MB)
    try:
        during.set()
        await asyncio.sleep(60)
    finally:
        del block
        store.append(bytearray(10 * MB))
        await asyncio.sleep(0.005)
        store.append(bytearray(5 * MB))


async def test_clean_up_after_a_cancellation_is_charged(session: Meter) -> None:
    store: list[bytearray] = []
    started = asyncio.Event()
    tracked = track(cleans_up(store, started), session)
    task = asyncio.ensure_future(tracked)
    beside = asyncio.ensure_future(bystander(session))
    await started.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    usage = ended(tracked).usage
    assert usage is not None
    assert (usage.peak_bytes, usage.retained_bytes) == (near(30 * MB), near(15 * MB))
    assert await beside == near(0)


async def test_clean_up_after_a_timeout_is_charged(session: Meter) -> None:
    store: list[bytearray] = []
    tracked = track(cleans_up(store, asyncio.Event()), session)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await tracked

    task = asyncio.current_task()
    usage = ended(tracked).usage
    assert usage is not None
    assert (usage.peak_bytes, usage.retained_bytes) == (near(30 * MB), near(15 * MB))
    assert task is not None
    assert task.cancelling() == 0


async def test_cancelling_and_uncancel_are_unchanged(session: Meter) -> None:
    seen: list[int] = []

    async def swallows_one() -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(task.cancelling())
            seen.append(task.uncancel())
        await asyncio.sleep(0)
        return "went on"

    for inner in (swallows_one(), track(swallows_one(), session)):
        task = asyncio.ensure_future(inner)
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "went on"

    assert seen == [1, 0, 1, 0]


async def test_task_cancelled_before_its_first_step_closes_its_owner(session: Meter) -> None:
    async def never() -> None:
        raise AssertionError("must not run")

    tracked = track(never(), session)
    task = asyncio.ensure_future(tracked)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert not ended(tracked).is_active


def test_close_runs_the_clean_up_inside_a_charged_step(session: Meter) -> None:
    store: list[bytearray] = []

    class Pause:
        def __await__(self) -> Any:
            yield

    async def holds() -> None:
        try:
            await Pause()
        finally:
            store.append(bytearray(10 * MB))

    tracked = track(holds(), session)
    tracked.send(None)
    before = session.unattributed_bytes

    tracked.close()

    assert ended(tracked).live_bytes == near(10 * MB)
    assert session.unattributed_bytes - before == near(0)


def test_coroutine_closed_twice_ends_once(session: Meter) -> None:
    told: list[BaseException | None] = []

    async def pauses() -> None:
        await asyncio.sleep(0)

    tracked = TrackedCoroutine(
        pauses(), session, name="call", kind="call", on_end=lambda owner, error: told.append(error)
    )
    tracked.send(None)

    tracked.close()
    tracked.close()

    assert told == [None]


def test_coroutine_closed_before_its_start_opens_nothing(session: Meter) -> None:
    async def never() -> None:
        raise AssertionError("must not run")

    tracked = track(never(), session)

    tracked.close()

    assert tracked.owner is None


def test_dropped_suspended_call_closes_its_owner(session: Meter) -> None:
    store: list[bytearray] = []

    class Pause:
        def __await__(self) -> Any:
            yield

    async def holds() -> None:
        try:
            await Pause()
        finally:
            store.append(bytearray(10 * MB))

    tracked = TrackedCoroutine(holds(), session, name="call", kind="call")
    tracked.send(None)
    owner = tracked.owner
    assert owner is not None

    del tracked

    assert not owner.is_active
    assert owner.live_bytes == near(10 * MB)


async def test_results_and_exceptions_of_a_coroutine_pass(session: Meter) -> None:
    async def raises() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    async def returns() -> int:
        await asyncio.sleep(0)
        return 7

    failing = track(raises(), session)
    with pytest.raises(LookupError, match="mine"):
        await failing

    assert await track(returns(), session) == 7
    assert current_tracker() is None


def test_interrupt_passes_and_closes_the_owner(session: Meter) -> None:
    async def interrupted() -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    tracked = track(interrupted(), session)

    async def main() -> None:
        await tracked

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    assert not ended(tracked).is_active


async def test_children_count_into_their_owner_unless_excluded(session: Meter) -> None:
    store: list[bytearray] = []

    async def child() -> None:
        await asyncio.sleep(0.001)
        store.append(bytearray(10 * MB))

    async def parent() -> None:
        await asyncio.gather(*(asyncio.ensure_future(track(child(), session, f"child {i}", "task")) for i in range(2)))

    together = track(parent(), session, "together")
    alone = track(parent(), session, "alone", include_children=False)
    await asyncio.ensure_future(together)
    await asyncio.ensure_future(alone)

    assert ended(together).live_bytes == near(20 * MB)
    assert ended(alone).live_bytes == near(0)


async def test_task_without_an_owner_is_charged_to_its_starter(session: Meter) -> None:
    store: list[bytearray] = []

    async def child() -> None:
        await asyncio.sleep(0.001)
        store.append(bytearray(10 * MB))

    async def parent() -> None:
        await asyncio.gather(*(asyncio.ensure_future(track(child(), session, None)) for _ in range(3)))

    tracked = track(parent(), session)
    await asyncio.ensure_future(tracked)

    assert ended(tracked).live_bytes == near(30 * MB)


async def test_owner_of_another_meter_does_not_replace_the_current_one(session: Meter) -> None:
    store: list[bytearray] = []

    async def call() -> None:
        async with memory_scope("rss", meter="rss"):
            await asyncio.sleep(0.001)
            store.append(bytearray(10 * MB))
            await asyncio.sleep(0.001)

    tracked = track(call(), session)
    await asyncio.gather(tracked, bystander(session))

    assert ended(tracked).live_bytes == near(10 * MB)


async def test_tracker_of_one_meter_serves_scopes_of_another(session: Meter) -> None:
    from memtools.ledger import choose_meter

    store: list[bytearray] = []
    scopes: list[memory_scope] = []

    async def call() -> None:
        async with memory_scope("tracemalloc", meter="tracemalloc") as scope:
            scopes.append(scope)
            await asyncio.sleep(0.002)
            store.append(bytearray(10 * MB))
            await asyncio.sleep(0.002)

    async def noisy() -> None:
        await asyncio.sleep(0.001)
        store.append(bytearray(30 * MB))

    await asyncio.gather(track(call(), choose_meter("rss")), noisy())

    assert scopes[0].usage.retained_bytes == near(10 * MB)
    assert scopes[0].usage.exact == (session.name == "native"), "with tracemalloc, the other task may be its child"


async def test_steps_are_counted_for_the_call_and_for_scopes_inside(session: Meter) -> None:
    scopes: list[memory_scope] = []

    async def call() -> None:
        await asyncio.sleep(0)
        async with memory_scope("inside", meter="tracemalloc") as scope:
            scopes.append(scope)
            for _ in range(300):
                await asyncio.sleep(0)

    tracked = track(call(), session)
    await tracked

    usage = ended(tracked).usage
    assert usage is not None
    assert usage.steps == tracked.steps == 302
    assert scopes[0].usage.steps == 301


async def test_awaited_call_restores_the_current_owner(session: Meter) -> None:
    store: list[bytearray] = []

    async def inner() -> None:
        store.append(bytearray(5 * MB))
        await asyncio.sleep(0)

    async def outer() -> None:
        store.append(bytearray(10 * MB))
        await track(inner(), session, "inner")
        store.append(bytearray(10 * MB))

    tracked = track(outer(), session, "outer")
    await tracked

    assert ended(tracked).live_bytes == near(25 * MB)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_task_in_its_parents_step_is_charged_for_itself(session: Meter) -> None:
    store: list[bytearray] = []
    children: list[TrackedCoroutine[Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)

    async def child() -> None:
        assert current_tracker() is children[0]
        store.append(bytearray(5 * MB))
        await asyncio.sleep(0.001)
        store.append(bytearray(5 * MB))

    async def bare() -> None:
        # Starts in a step of the parent, whose tracker does not track it.
        assert current_tracker() is None
        async with memory_scope("bare", meter="tracemalloc") as scope:
            await asyncio.sleep(0.001)
            store.append(bytearray(3 * MB))
        assert scope.usage.retained_bytes == near(3 * MB)
        assert scope.usage.exact

    async def parent() -> None:
        store.append(bytearray(20 * MB))
        children.append(track(child(), session, "child", "task"))
        tasks = [asyncio.ensure_future(children[0]), asyncio.ensure_future(bare())]
        store.append(bytearray(20 * MB))
        await asyncio.gather(*tasks)

    tracked = track(parent(), session, "parent", include_children=False)
    await tracked

    assert ended(children[0]).live_bytes == near(10 * MB)
    assert ended(tracked).live_bytes == near(40 * MB)


async def test_owner_may_be_closed_in_another_context(session: Meter) -> None:
    opened: list[Owner] = []
    elsewhere = contextvars.copy_context()
    elsewhere.run(lambda: opened.append(open_owner("there", "scope", meter=session)))
    elsewhere_too = contextvars.copy_context()

    elsewhere_too.run(lambda: close_owner(opened[0]))

    assert elsewhere.run(active_owner) is None
    assert active_owner() is None


async def test_task_that_outlives_its_scope_opens_below_an_open_one(session: Meter) -> None:
    parents: list[Owner | None] = []

    async def late() -> None:
        await asyncio.sleep(0.002)
        with memory_scope("late", meter="tracemalloc") as scope:
            parents.append(scope.owner.parent)

    outer = open_owner("outer", "scope", meter=session)
    inner = open_owner("inner", "scope", meter=session)
    task = asyncio.ensure_future(track(late(), session, None))
    close_owner(inner)
    await task
    close_owner(outer)

    assert parents == [outer]


async def test_debuggers_see_the_users_coroutine(session: Meter, capsys: pytest.CaptureFixture[str]) -> None:
    async def my_own_coroutine() -> None:
        await asyncio.sleep(60)

    tracked = track(my_own_coroutine(), session)
    task = asyncio.get_running_loop().create_task(tracked)
    await asyncio.sleep(0)

    assert task in asyncio.all_tasks()
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["my_own_coroutine"]
    assert "my_own_coroutine" in repr(task)
    assert tracked.cr_await is not None
    assert asyncio.iscoroutine(tracked)
    task.print_stack(file=sys.stdout)
    assert "my_own_coroutine" in capsys.readouterr().out

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_asyncio_debug_mode_works(session: Meter) -> None:
    async def call() -> int:
        await asyncio.sleep(0)
        return 3

    async def main() -> int:
        return await asyncio.create_task(track(call(), session, "call", "task"))

    assert asyncio.run(main(), debug=True) == 3


def test_tracking_of_no_coroutine_raises_and_opens_nothing(session: Meter) -> None:
    with pytest.raises(AttributeError, match="send"):
        TrackedCoroutine(42, session)  # type: ignore[arg-type]  # on purpose
    gc.collect()
