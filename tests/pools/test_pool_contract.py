"""What both pools promise: one executor contract, for threads and for processes."""

import asyncio
import functools
import gc
import os
import time
import traceback
import warnings
import weakref
from concurrent.futures import CancelledError, Executor, wait

import pytest

from memtools import Component, ConfigError, ScopeClosed
from memtools.errors import ScopeFull
from memtools.pools import process_pool_scope, thread_pool_scope

# By the server that the fixture has started: spawned workers take half a second each.
POOLS = [thread_pool_scope, functools.partial(process_pool_scope, start="forkserver")]


@pytest.fixture(params=POOLS, ids=["threads", "processes"])
def make(request):
    return request.param


class TestTasks:
    """Submitting tasks, and what comes back."""

    def test_results_and_errors_come_back_to_their_tasks(self, make):
        import pool_tasks

        with make(2, name="both") as pool:
            assert isinstance(pool, Executor)
            future = pool.submit(pool_tasks.double, 21)
            keyword = pool.submit(int, "ff", base=16)
            error = pool.submit(pool_tasks.fail, "no such price").exception()
            assert (future.result(), keyword.result()) == (42, 255)

            shown = "".join(traceback.format_exception(error))
            assert isinstance(error, ValueError)
            assert "raise ValueError(text)" in shown
            assert list(pool.map(pow, (2, 3, 4), (5, 2, 3))) == [32, 9, 64]
            assert list(pool.map(abs, range(10), chunksize=3)) == list(range(10))
            assert list(pool.map(abs, (), chunksize=3)) == []
            assert list(pool.map(abs, range(5), buffersize=1)) == list(range(5))
            with pytest.raises(ConfigError, match="chunksize"):
                pool.map(abs, (), chunksize=0)
            with pytest.raises(ConfigError, match="fn="):
                pool.submit(3)

        found = pool.statistics()
        assert (found.failed, found.running, found.waiting, found.state) == (1, 0, 0, "ended")
        assert found.to_dict()["name"] == "both"
        assert "both" in str(found)
        assert "both" in repr(pool)

    def test_task_after_the_end_is_refused(self, make):
        with make(1) as pool:
            pass

        with pytest.raises(ScopeClosed, match="shut down"):
            pool.submit(abs, 1)
        with pytest.raises(ScopeClosed), pool:
            pass
        with pytest.raises(ScopeClosed):
            pool.map(abs, [1])

    async def test_coroutines_await_calls(self, make):
        import pool_tasks

        async with make(2) as pool:
            loop = asyncio.get_running_loop()
            assert await pool.run(pool_tasks.double, 4) == 8
            assert await loop.run_in_executor(pool, pool_tasks.double, 5) == 10
            with pytest.raises(ValueError, match="not there"):
                await pool.run(pool_tasks.fail, "not there")
        with pytest.raises(ScopeClosed):
            await pool.run(abs, 1)

    def test_map_that_is_left_early_cancels_the_rest(self, make):
        with make(1) as pool:
            results = pool.map(time.sleep, [0.0, *[0.05] * 50])
            next(results)
            results.close()

        assert pool.statistics().cancelled > 0

    def test_map_stops_at_its_timeout(self, make):
        with make(1) as pool, pytest.raises(TimeoutError):
            list(pool.map(time.sleep, [0.5, 0.0], timeout=0.01))


class TestBound:
    """`max_pending`: refusal and back-pressure."""

    def test_submit_refuses_more_than_max_pending(self, make):
        with make(1, max_pending=2, name="small") as pool:
            futures = [pool.submit(time.sleep, 0.2) for _ in range(3)]
            with pytest.raises(ScopeFull, match="2 are waiting, max_pending=2"):
                pool.submit(time.sleep, 0)
            wait(futures)
            assert pool.submit(abs, -1).result() == 1

    async def test_run_waits_for_a_place(self, make):
        most = 0

        async with make(1, max_pending=1) as pool:

            async def call(number):
                nonlocal most
                result = await pool.run(abs, -number)
                most = max(most, pool.statistics().waiting)
                return result

            assert await asyncio.gather(*map(call, range(30))) == list(range(30))
        assert most <= 2

    def test_place_is_free_as_soon_as_the_result_is_there(self, make):
        with make(1, max_pending=0) as pool:
            assert [pool.submit(abs, number).result() for number in range(200)] == list(range(200))
            assert pool.statistics().finished == 200

    def test_callback_may_shut_the_pool_down(self, make):
        pool = make(1)
        future = pool.submit(abs, -1)
        future.add_done_callback(lambda _: pool.shutdown())
        assert future.result() == 1
        pool.shutdown()
        assert pool.statistics().state == "ended"

    def test_callback_that_raises_harms_no_other_task(self, make):
        def leave(_):
            raise ValueError("of a callback")

        with make(1) as pool:
            first = pool.submit(time.sleep, 0.1)
            first.add_done_callback(leave)
            assert pool.submit(abs, -1).result() == 1

    def test_map_takes_what_has_a_place(self, make):
        taken = []

        def numbers():
            for number in range(20):
                taken.append(number)
                yield number

        with make(1, max_pending=2) as pool:
            results = pool.map(abs, numbers())
            assert len(taken) == 3
            assert list(results) == list(range(20))

    async def test_cancelled_wait_gives_its_place_back(self, make):
        async with make(1, max_pending=0) as pool:
            first = asyncio.ensure_future(pool.run(time.sleep, 0.2))
            await asyncio.sleep(0)
            second = asyncio.ensure_future(pool.run(abs, 1))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait({first, second})
            assert await pool.run(abs, -3) == 3

    async def test_wait_for_a_place_ends_with_the_pool(self, make):
        async with make(1, max_pending=0) as pool:
            first = asyncio.ensure_future(pool.run(time.sleep, 0.2))
            await asyncio.sleep(0)
            second = asyncio.ensure_future(pool.run(abs, 1))
            await asyncio.sleep(0.01)
        with pytest.raises(ScopeClosed):
            await second
        await first


class TestEnd:
    """How a pool ends."""

    async def test_end_waits_for_tasks_while_the_loop_goes_on(self, make):
        loop = asyncio.get_running_loop()
        ticks = 0

        def tick():
            nonlocal ticks
            ticks += 1
            loop.call_later(0.001, tick)

        async with make(1) as pool:
            await pool.run(abs, 1)
            futures = [pool.submit(time.sleep, 0.1) for _ in range(2)]
            tick()
        assert all(future.done() and not future.cancelled() for future in futures)
        assert ticks > 20

    @pytest.mark.parametrize("is_async", [False, True])
    async def test_exception_cancels_what_waits(self, make, is_async):
        async def leave():
            if is_async:
                async with make(1, grace=0.3) as pool:
                    await fail_in(pool)
            with make(1, grace=0.3) as pool:
                await fail_in(pool)

        async def fail_in(pool):
            pools.append(pool)
            futures.extend(pool.submit(time.sleep, 0.05) for _ in range(20))
            raise KeyError("the block")

        pools, futures = [], []
        with pytest.raises(KeyError, match="the block"):
            await leave()
        assert futures[-1].cancelled()
        assert all(future.done() for future in futures)
        assert pools[0].statistics().state == "ended"

    async def test_cancellation_passes_and_leaves_nothing(self, make):
        async def work():
            async with make(1, grace=30) as pool:
                pools.append(pool)
                await pool.run(time.sleep, 0.05)
                await pool.run(time.sleep, 0.3)

        pools = []
        task = asyncio.ensure_future(work())
        while not pools or not pools[0].statistics().finished:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pools[0].statistics().state == "ended"

    async def test_timeout_in_the_exit_ends_the_pool(self, make):
        futures = []
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(0.2):
                async with make(1, grace=0.1) as pool:
                    futures = [pool.submit(time.sleep, 0.4) for _ in range(20)]
        assert futures[-1].cancelled()
        with pytest.raises(CancelledError):
            futures[-1].result()
        await asyncio.to_thread(pool.shutdown)

    async def test_component_owns_and_ends_a_pool(self, make):
        async with Component("service", grace=10) as service:
            pool = service.own(make(1))
            assert await pool.run(abs, -1) == 1
        assert pool.statistics().state == "ended"

    def test_forgotten_pool_warns_and_ends(self, make, eventually):
        pool = make(1, name="forgotten")
        pool.submit(abs, 1).result()
        reference = weakref.ref(pool)

        with pytest.warns(ResourceWarning, match="forgotten was never shut down"):  # noqa: PT031
            del pool
            gc.collect()
        assert reference() is None  # the test's guard waits for thread, descriptors and processes

    def test_pool_that_was_never_used_is_forgotten_silently(self, make):
        pool = make(1)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del pool
            gc.collect()

    def test_shutdown_may_be_called_again(self, make):
        pool = make(1)
        assert pool.submit(abs, -1).result() == 1

        pool.shutdown(wait=False)
        pool.shutdown()
        pool.shutdown(cancel_futures=True)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_forked_child_is_told_to_make_its_own(self, make):
        with make(1, name="mine") as pool:
            pool.submit(abs, 1).result()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads: 3.12
                pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    pool.submit(abs, 1)
                except ScopeClosed as error:
                    status = 0 if "make a pool here" in str(error) else 2
                    pool.shutdown()
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert pool.submit(abs, -2).result() == 2


class TestArguments:
    """Invalid arguments are refused before anything starts."""

    @pytest.mark.parametrize(
        ("argument", "value"),
        [("max_workers", 0), ("max_workers", True), ("max_pending", -1), ("grace", -1), ("grace", "5"), ("name", "")],
    )
    def test_invalid_argument_is_named(self, make, argument, value):
        with pytest.raises(ConfigError, match=f"{argument}="):
            make(**{argument: value})

    def test_guessed_argument_gets_its_name(self, make):
        with pytest.raises(TypeError, match="use 'max_workers'"):
            make(limit=3)
