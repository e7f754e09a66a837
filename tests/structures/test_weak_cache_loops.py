"""`WeakCache.aget_or_create` on several event loops, in several threads, and on closed loops."""

import asyncio
import gc
import sys
import threading
import weakref

import pytest

from memtools.structures import WeakCache

TIMEOUT_S = 30.0


class Value:
    """Something that can be weakly referenced."""


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop has no build for Windows")
@pytest.mark.leaves("descriptor", reason="libuv keeps one pipe for signals for the whole process")
def test_uvloop_passes_the_task_tests():
    import uvloop

    async def main():
        cache = WeakCache()
        go = asyncio.Event()
        runs = []

        async def factory():
            runs.append(1)
            await go.wait()
            return Value()

        tasks = [asyncio.create_task(cache.aget_or_create("key", factory)) for _ in range(50)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return len(runs), type(results[0]), len(set(map(id, results[1:]))), cache.statistics().in_progress

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(main())

    assert outcome == (1, asyncio.CancelledError, 1, 0)


def in_threads(*works):
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert errors == []


def test_loops_and_threads_end_with_one_value():
    cache = WeakCache()
    kept = []
    together = threading.Barrier(4)

    async def factory():
        await asyncio.sleep(0.01)
        return Value()

    async def many():
        return await asyncio.gather(*(cache.aget_or_create("key", factory) for _ in range(50)))

    def with_loop():
        together.wait(TIMEOUT_S)
        kept.extend(asyncio.run(many()))

    def plain():
        together.wait(TIMEOUT_S)
        kept.append(cache.get_or_create("key", Value))

    in_threads(with_loop, with_loop, with_loop, plain)

    assert len(kept) == 151
    assert len(set(map(id, kept))) == 1
    assert cache.statistics().in_progress == 0


def test_loop_closed_during_a_call_blocks_no_other_loop():
    cache = WeakCache()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # it is called for the destroyed task

    async def endless():
        await asyncio.Event().wait()

    async def begin():
        task = asyncio.create_task(cache.aget_or_create("key", endless))
        await asyncio.sleep(0.01)
        return task

    async def fine():
        return "fine"

    task = loop.run_until_complete(begin())
    loop.close()
    value = asyncio.run(cache.aget_or_create("key", fine))

    assert value == "fine"
    assert cache.statistics().in_progress == 0
    assert not task.done()
    task.get_coro().close()


def test_end_of_a_loop_ends_the_call():
    cache = WeakCache()
    ended = []

    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", endless))
        await asyncio.sleep(0.01)
        return task

    task = asyncio.run(main())

    assert task.cancelled()
    assert ended == [1]
    assert cache.statistics().in_progress == 0


def test_abandoned_loop_is_not_kept_alive():
    async def endless():
        await asyncio.Event().wait()

    async def begin():
        cache = WeakCache()
        task = asyncio.create_task(cache.aget_or_create("key", endless))
        await asyncio.sleep(0.01)
        return weakref.ref(task)

    def abandon():
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)  # as above
        try:
            return loop.run_until_complete(begin())
        finally:
            loop.close()

    task = abandon()
    gc.collect()

    assert task() is None
