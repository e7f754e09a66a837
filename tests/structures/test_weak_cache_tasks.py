"""`WeakCache.aget_or_create`: one call for all tasks of an event loop, and cancellation."""

import asyncio
import contextlib
import contextvars
import gc
import sys
import weakref

import pytest

from memtools.errors import RecursiveFactory
from memtools.structures import WeakCache

TIMEOUT_S = 30.0


class Value:
    """Something that can be weakly referenced."""


class Work:
    """An async factory that ends when the test sets `go`, and records whether it was cancelled."""

    def __init__(self, make=Value):
        self.make = make
        self.runs = 0
        self.was_cancelled = False
        self.cleaned_up = False
        self.go = asyncio.Event()

    async def __call__(self):
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            await asyncio.sleep(0)
            self.cleaned_up = True
            raise
        return self.make()


def fail():
    raise ValueError("no")


async def settle():
    """Let all other tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(cache, work, count=1):
    return [asyncio.create_task(cache.aget_or_create("key", work)) for _ in range(count)]


@pytest.fixture(autouse=True)
async def no_error_and_no_task_left():
    """Fail if the exception handler of the loop was called, or a task is left."""
    contexts = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    before = asyncio.all_tasks()
    yield
    await settle()
    gc.collect()
    await settle()
    assert contexts == []
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def test_a_thousand_missing_tasks_share_one_call():
    cache = WeakCache()
    work = Work()
    tasks = ask(cache, work, 1000)
    await settle()
    making = cache.statistics().in_progress
    work.go.set()

    values = await asyncio.gather(*tasks)

    assert making == 1
    assert work.runs == 1
    assert len(set(map(id, values))) == 1
    assert cache.statistics().in_progress == 0
    assert await cache.aget_or_create("key", work) is values[0]
    assert work.runs == 1


async def test_cache_without_strong_tier_returns_the_value_to_all():
    cache = WeakCache(strong=0)
    work = Work()
    tasks = ask(cache, work, 3)
    await settle()
    work.go.set()

    values = await asyncio.gather(*tasks)
    alike = values[0] is values[1] is values[2]
    del values, tasks
    await settle()

    assert alike
    assert len(cache) == 0


async def test_failure_is_raised_in_all_waiters_and_not_stored():
    cache = WeakCache()
    work = Work(fail)
    tasks = ask(cache, work, 10)
    await settle()
    work.go.set()

    results = await asyncio.gather(*tasks, return_exceptions=True)
    fine = Work()
    fine.go.set()
    later = await cache.aget_or_create("key", fine)

    assert [type(result) for result in results] == [ValueError] * 10
    assert work.runs == 1
    assert isinstance(later, Value)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_cancelled_waiter_does_not_affect_the_others(cancelled):
    cache = WeakCache()
    work = Work()
    tasks = ask(cache, work, 3)
    await settle()

    tasks[cancelled].cancel()
    await settle()
    work.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results.pop(cancelled), asyncio.CancelledError)
    assert results[0] is results[1] is cache["key"]
    assert (work.runs, work.was_cancelled) == (1, False)


async def test_last_cancelled_waiter_cancels_and_awaits_the_call():
    cache = WeakCache()
    work = Work()
    tasks = ask(cache, work, 2)
    await settle()

    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert work.cleaned_up
    assert all(task.cancelled() for task in tasks)
    assert cache.statistics().in_progress == 0


async def test_miss_during_a_cancelled_call_starts_a_new_call():
    cache = WeakCache()
    doomed, work = Work(), Work()
    (first,) = ask(cache, doomed)
    await settle()
    first.cancel()
    await asyncio.sleep(0)

    (second,) = ask(cache, work)
    await settle()
    work.go.set()

    assert isinstance(await second, Value)
    assert doomed.was_cancelled
    assert first.cancelled()


async def test_timeout_of_the_only_waiter_cancels_the_call():
    cache = WeakCache()
    work = Work()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await cache.aget_or_create("key", work)

    assert work.cleaned_up
    assert asyncio.current_task().cancelling() == 0


async def test_second_cancel_does_not_wait_for_the_call():
    cache = WeakCache()
    release = asyncio.Event()

    async def stubborn():
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    (task,) = ask(cache, stubborn)
    await settle()
    task.cancel()
    await settle()
    waited = not task.done()
    task.cancel()
    await settle()

    assert waited
    assert task.cancelled()
    release.set()


async def test_failure_during_cancellation_is_raised():
    cache = WeakCache()

    async def breaks():
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in the clean-up")

    (task,) = ask(cache, breaks)
    await settle()
    task.cancel()

    with pytest.raises(ValueError, match="in the clean-up"):
        await task


async def test_failure_without_waiters_is_not_logged():
    cache = WeakCache()
    work = Work(fail)
    tasks = ask(cache, work, 2)
    await settle()

    work.go.set()
    await asyncio.sleep(0)  # the call has ended, the waiting tasks have not run yet
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} <= {ValueError, asyncio.CancelledError}


async def test_cancelled_call_cancels_all_waiters():
    cache = WeakCache()
    work = Work()
    tasks = ask(cache, work, 2)
    await settle()

    (run,) = [task for task in asyncio.all_tasks() if task.get_name() == "WeakCache factory"]
    run.cancel()
    await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)
    assert "key" not in cache


async def test_call_has_the_context_of_the_first_task():
    cache = WeakCache()
    request = contextvars.ContextVar("request", default="none")

    async def factory():
        return request.get()

    async def first():
        request.set("first")
        return await cache.aget_or_create("key", factory)

    assert await asyncio.create_task(first()) == "first"


async def test_factory_that_waits_for_its_own_key_raises():
    cache = WeakCache()

    async def factory():
        return await cache.aget_or_create("key", factory)

    with pytest.raises(RecursiveFactory, match="'key'"):
        await cache.aget_or_create("key", factory)

    assert cache.statistics().in_progress == 0


async def test_factories_that_wait_for_each_other_raise():
    cache, other = WeakCache(), WeakCache()

    async def one():
        await asyncio.sleep(0)
        return await other.aget_or_create("b", two)

    async def two():
        await asyncio.sleep(0)
        return await cache.aget_or_create("a", one)

    async with asyncio.timeout(TIMEOUT_S):
        results = await asyncio.gather(
            cache.aget_or_create("a", one), other.aget_or_create("b", two), return_exceptions=True
        )

    assert [type(result) for result in results] == [RecursiveFactory] * 2


async def test_nested_factory_for_another_key_works():
    cache = WeakCache()

    async def inner():
        return "b"

    async def outer():
        return "a" + await cache.aget_or_create("b", inner)

    assert await cache.aget_or_create("a", outer) == "ab"


async def test_value_set_meanwhile_is_returned_to_all():
    cache = WeakCache()
    work = Work()
    tasks = ask(cache, work, 2)
    await settle()
    cache["key"] = explicit = Value()
    work.go.set()

    assert await asyncio.gather(*tasks) == [explicit, explicit]


async def test_value_of_a_removed_key_is_not_stored():
    cache = WeakCache()
    stale, fresh = Work(), Work()
    (first,) = ask(cache, stale)
    await settle()
    cache.pop("key", None)
    (second,) = ask(cache, fresh)
    await settle()
    stale.go.set()
    fresh.go.set()

    values = await asyncio.gather(first, second)

    assert values[0] is not values[1]
    assert cache["key"] is values[1]


async def test_failed_call_keeps_no_frame_alive():
    cache = WeakCache()
    seen = []

    async def failing():
        local = Value()
        seen.append(weakref.ref(local))
        await asyncio.sleep(0)
        raise ValueError

    async def one():
        with contextlib.suppress(ValueError):
            await cache.aget_or_create("key", failing)

    gc.disable()
    try:
        await asyncio.gather(one(), one(), one())
        await settle()
        died = [reference() is None for reference in seen]
    finally:
        gc.enable()

    assert died == [True]


async def test_hit_does_not_suspend():
    cache = WeakCache()
    cache["key"] = value = Value()
    hit = cache.aget_or_create("key", Work())

    with pytest.raises(StopIteration) as caught:
        hit.send(None)

    assert caught.value.value is value


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("make", [Value, fail])
async def test_eager_tasks_share_one_call(make):
    loop = asyncio.get_running_loop()
    cache = WeakCache()
    runs = []

    async def concurrency():
        runs.append(1)
        return make()

    async def later():
        runs.append(1)
        await asyncio.sleep(0)
        return make()

    async def recursive():
        return await cache.aget_or_create("own", recursive)

    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        first = await asyncio.gather(*(cache.aget_or_create("a", later) for _ in range(9)), return_exceptions=True)
        second = await asyncio.gather(cache.aget_or_create("b", concurrency), return_exceptions=True)
        with pytest.raises(RecursiveFactory):
            await cache.aget_or_create("own", recursive)
    finally:
        loop.set_task_factory(None)

    assert len(runs) == 2
    assert {type(result) for result in first + second} == {Value if make is Value else ValueError}
    assert cache.statistics().in_progress == 0


async def test_task_factory_that_fails_leaves_no_call():
    loop = asyncio.get_running_loop()
    cache = WeakCache()

    def broken(loop, coroutine, **options):
        raise LookupError

    loop.set_task_factory(broken)
    try:
        with pytest.raises(LookupError):
            await cache.aget_or_create("key", Work())
    finally:
        loop.set_task_factory(None)

    assert cache.statistics().in_progress == 0
