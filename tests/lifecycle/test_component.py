"""The shutdown of a component: order, deadline, errors, cancellation."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from memtools import BoundedList, Component, ConfigError, ScopeClosed, WeakCache
from memtools.events import TaskAbandoned, subscribe


class Closing:
    """Appends its name to a shared list when it is closed."""

    def __init__(self, closed: list[str], name: str, error: BaseException | None = None) -> None:
        self._closed, self._name, self._error = closed, name, error

    def close(self) -> None:
        self._closed.append(self._name)
        if self._error is not None:
            raise self._error


class ClosingLater(Closing):
    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.close()


class Stubborn:
    """Ignores cancellation until it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def aclose(self) -> None:
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue


async def test_resources_are_closed_in_reverse_order() -> None:
    closed: list[str] = []
    async with Component("shop") as shop:
        for number in range(3):
            shop.own((Closing, ClosingLater)[number % 2](closed, str(number)))

    assert closed == ["2", "1", "0"]
    assert shop.statistics().state == "ended"
    assert shop.statistics().owned == 0


@pytest.mark.parametrize("method", ["shutdown", "aclose", "close", "stop", "clear"])
async def test_resource_is_closed_by_the_method_that_it_has(method: str) -> None:
    closed: list[str] = []
    resource = type("Resource", (), {method: lambda self: closed.append(method)})()
    async with Component() as component:
        assert component.own(resource) is resource

    assert closed == [method]


async def test_close_argument_precedes_the_methods_of_a_resource() -> None:
    closed: list[str] = []
    both = type(
        "Both", (), {"close": lambda self: closed.append("close"), "clear": lambda self: closed.append("clear")}
    )
    async with Component() as component:
        component.own(both())
        component.own(both(), close=lambda resource: closed.append("given"))

    assert closed == ["given", "close"]


async def test_owned_caches_and_lists_are_empty_after_the_shutdown() -> None:
    async with Component() as component:
        recent, cache = component.own(BoundedList([1, 2], maxlen=5)), component.own(WeakCache())
        cache["a"] = 1

    assert not recent
    assert not cache


@pytest.mark.parametrize("resource", [3, object(), None, "text"])
async def test_object_that_cannot_be_closed_is_refused(resource: object) -> None:
    with pytest.raises(ConfigError, match="resource"):
        Component().own(resource)


async def test_close_that_is_not_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="close"):
        Component().own([], close="shut")  # type: ignore[arg-type]  # refused at run time, too


@pytest.mark.parametrize(("argument", "value"), [("name", ""), ("name", 3), ("grace", -1), ("grace", float("nan"))])
def test_invalid_arguments_are_refused(argument: str, value: object) -> None:
    with pytest.raises(ConfigError, match=argument):
        Component(**{argument: value})


async def test_tasks_are_held_until_they_end_and_then_cancelled() -> None:
    component = Component()
    running = component.create_task(asyncio.sleep(3600))
    brief = component.create_task(asyncio.sleep(0))
    reference = weakref.ref(brief)
    await brief
    del brief
    await asyncio.sleep(0)
    gc.collect()

    assert reference() is None
    assert component.statistics().tasks == 1
    await component.shutdown()
    assert running.cancelled()


async def test_task_that_fails_is_reported_at_once() -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    async def fail() -> None:
        raise KeyError("x")

    async with Component("shop") as shop:
        shop.create_task(fail(), name="import")
        await asyncio.sleep(0.01)
        statistics = shop.statistics()

    assert [(context["message"], repr(context["exception"])) for context in reported] == [
        ("task import of shop failed", "KeyError('x')")
    ]
    assert (statistics.failed, statistics.tasks, statistics.state) == (1, 0, "open")


async def test_errors_are_grouped_and_every_resource_is_closed() -> None:
    closed: list[str] = []

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise OSError("task")

    shop = Component("shop")
    shop.own(Closing(closed, "first"))
    shop.own(Closing(closed, "second", ValueError("sync")))
    shop.own(ClosingLater(closed, "third", KeyError("async")))
    shop.create_task(fails_when_cancelled(), name="import")
    await asyncio.sleep(0)

    with pytest.raises(ExceptionGroup, match="shop did not shut down cleanly") as failed:
        await shop.shutdown()

    assert closed == ["third", "second", "first"]
    assert [type(error) for error in failed.value.exceptions] == [OSError, KeyError, ValueError]
    assert failed.value.exceptions[0].__notes__ == ["while task import of shop was closed"]


async def test_exception_of_the_block_precedes_shutdown_errors(caplog) -> None:
    async def serve() -> None:
        async with Component("shop") as shop:
            shop.own(Closing([], "x", ValueError("hidden")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await serve()

    assert "shop did not shut down cleanly" in caplog.text
    assert "hidden" in caplog.text


async def test_system_exit_is_raised_after_all_resources_closed() -> None:
    closed: list[str] = []
    component = Component()
    component.own(Closing(closed, "first"))
    component.own(Closing(closed, "second", SystemExit(3)))

    with pytest.raises(SystemExit):
        await component.shutdown()

    assert closed == ["second", "first"]


async def test_second_shutdown_waits_for_the_first() -> None:
    closed: list[str] = []
    component = Component()
    component.own(ClosingLater(closed, "once"))

    await asyncio.gather(component.shutdown(), component.shutdown())
    await component.shutdown()

    assert closed == ["once"]


async def test_ended_component_refuses_work() -> None:
    component = Component("shop")
    await component.shutdown()

    with pytest.raises(ScopeClosed, match="shop"):
        component.own([])
    with pytest.raises(ScopeClosed, match="shop"):
        component.create_task(asyncio.sleep(0))
    with pytest.raises(ScopeClosed, match="shop"):
        async with component:
            raise AssertionError("entered")


async def test_component_that_is_shutting_down_refuses_work() -> None:
    component = Component("shop")
    refused: list[BaseException] = []

    async def late() -> None:
        try:
            component.create_task(asyncio.sleep(3600))
        except ScopeClosed as error:
            refused.append(error)

    component.own(object(), close=lambda resource: late())
    await component.shutdown()

    assert len(refused) == 1


async def test_one_deadline_holds_for_all_resources(caplog) -> None:
    events: list[object] = []
    resources = [Stubborn() for _ in range(5)]
    component = Component("shop", grace=0.05)
    for resource in resources:
        component.own(resource)
    component.create_task(resources[0].aclose(), name="stubborn")
    await asyncio.sleep(0)

    began = time.monotonic()
    with subscribe(events.append), caplog.at_level(logging.WARNING), pytest.raises(ExceptionGroup) as failed:
        await component.shutdown()
    took_s = time.monotonic() - began

    for resource in resources:
        resource.release.set()
    await asyncio.sleep(0.01)
    assert took_s < 2
    assert len(failed.value.exceptions) == 5
    assert all(isinstance(error, TimeoutError) for error in failed.value.exceptions)
    assert [event.task for event in events if isinstance(event, TaskAbandoned)] == ["stubborn", *["Stubborn"] * 5]
    assert "shop abandons" in caplog.text


async def test_resource_that_closes_at_once_closes_after_the_deadline() -> None:
    closed: list[str] = []
    component = Component(grace=0)
    component.own(Closing(closed, "sync"))
    component.own(ClosingLater(closed, "async"))

    await component.shutdown()

    assert closed == ["async", "sync"]


async def test_cancellation_propagates_and_every_resource_is_closed() -> None:
    closed: list[str] = []
    component = Component("shop", grace=60)
    component.own(Closing(closed, "first"))
    slow = component.create_task(asyncio.sleep(3600))
    component.own(object(), close=lambda resource: asyncio.sleep(3600))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await component.shutdown()

    assert closed == ["first"]
    assert slow.cancelled()
    assert component.statistics().state == "ended"
    assert asyncio.current_task().cancelling() == 0


async def test_cancellation_propagates_through_child_components(caplog) -> None:
    closed: list[str] = []
    shop, shelf = Component("shop", grace=60), Component("shelf", grace=60)
    shop.own(Closing(closed, "shop's", ValueError("hidden")))
    shop.own(shelf)
    shelf.own(Closing(closed, "shelf's"))
    shelf.own(object(), close=lambda resource: asyncio.sleep(3600))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await shop.shutdown()

    assert closed == ["shelf's", "shop's"]
    assert "hidden" in caplog.text


async def test_cancelled_block_shuts_down_within_its_grace() -> None:
    closed: list[str] = []

    async def serve() -> None:
        async with Component() as component:
            component.own(ClosingLater(closed, "closed"))
            await asyncio.sleep(3600)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed == ["closed"]


async def test_task_of_the_component_may_shut_it_down() -> None:
    component = Component()
    other = component.create_task(asyncio.sleep(3600))

    async def quit_() -> str:
        await component.shutdown()
        return "done"

    assert await component.create_task(quit_()) == "done"
    assert other.cancelled()


async def test_child_ends_with_its_parent_by_the_parents_deadline() -> None:
    closed: list[str] = []
    shop, shelf, stubborn = Component("shop", grace=0.05), Component("shelf", grace=60), Stubborn()
    shop.own(Closing(closed, "shop's"))
    shop.own(shelf)
    shelf.own(Closing(closed, "shelf's"))
    shelf.own(stubborn)
    assert shelf.parent is shop

    began = time.monotonic()
    with pytest.raises(ExceptionGroup) as failed:
        await shop.shutdown()
    stubborn.release.set()
    await asyncio.sleep(0)

    assert time.monotonic() - began < 2
    assert closed == ["shelf's", "shop's"]
    assert failed.value.subgroup(TimeoutError) is not None
    assert shelf.statistics().state == "ended"


async def test_child_that_ends_first_is_released() -> None:
    shop, shelf = Component("shop"), Component("shelf")
    shop.own(shelf)

    await shelf.shutdown()

    assert shop.statistics().owned == 0
    assert shelf.parent is None


async def test_cycle_of_components_and_second_parent_are_refused() -> None:
    shop, shelf = Component("shop"), Component("shelf")
    shop.own(shelf)

    with pytest.raises(ConfigError, match="shelf"):
        shelf.own(shop)
    with pytest.raises(ConfigError, match="shop"):
        shop.own(shop)
    with pytest.raises(ConfigError, match="other parent"):
        Component().own(shelf)
    shop.release(shelf)
    await shop.shutdown()


async def test_released_resource_is_not_closed() -> None:
    closed: list[str] = []
    component = Component()
    resource = component.own(Closing(closed, "x"))

    component.release(resource)
    component.release(resource)
    await component.shutdown()

    assert closed == []


async def test_equal_unhashable_resources_are_owned_separately() -> None:
    first, second = [1], [1]
    async with Component() as component:
        for resource in (first, second, first):
            component.own(resource)
        assert component.statistics().owned == 2

    assert first == second == []


async def test_thread_pool_shutdown_does_not_block_the_loop() -> None:
    release, ticks = threading.Event(), 0
    component = Component()
    pool = component.own(ThreadPoolExecutor(1))
    busy, waiting = pool.submit(release.wait), pool.submit(print, "never")

    async def tick() -> None:
        nonlocal ticks
        while ticks < 5:
            ticks += 1
            await asyncio.sleep(0.001)
        release.set()

    await asyncio.gather(component.shutdown(), tick())

    assert ticks == 5
    assert busy.done()
    assert waiting.cancelled()


async def test_pool_that_does_not_end_is_named_in_the_error() -> None:
    release = threading.Event()
    component = Component("shop", grace=0.05)
    component.own(ThreadPoolExecutor(1)).submit(release.wait)

    try:
        with pytest.raises(ExceptionGroup) as failed:
            await component.shutdown()
    finally:
        release.set()

    assert "ThreadPoolExecutor of shop did not end within" in str(failed.value.exceptions[0])


@pytest.mark.leaves("descriptor", reason="multiprocessing keeps its resource tracker")
async def test_process_pool_is_shut_down() -> None:
    from multiprocessing import get_context

    async with Component(grace=60) as component:
        pool = component.own(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        answer = await asyncio.get_running_loop().run_in_executor(pool, abs, -3)

    assert answer == 3
    with pytest.raises(RuntimeError):
        pool.submit(abs, -3)


def test_component_that_was_never_shut_down_warns() -> None:
    component = Component("shop")
    component.own([1])

    with pytest.warns(ResourceWarning, match="shop was never shut down: it has 0 tasks and 1 other resources"):
        del component


def test_component_without_resources_does_not_warn(recwarn) -> None:
    component = Component("shop")
    del component
    unmade = Component.__new__(Component)
    del unmade

    assert len(recwarn) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_copy_in_a_forked_child_does_not_warn() -> None:
    component = Component("shop")
    component.own([1])

    child = os.fork()
    if child == 0:
        status = 1
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del component
            status = len(caught)
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.warns(ResourceWarning, match="shop was never shut down"):
        del component


async def test_component_with_running_tasks_is_freed_and_warns() -> None:
    component = Component("shop")
    task = component.create_task(asyncio.sleep(3600))

    with pytest.warns(ResourceWarning, match="shop was never shut down: it has 1 tasks"):
        del component

    task.cancel()


async def test_ended_component_is_in_no_reference_cycle() -> None:
    component = Component("shop")
    component.own(Component("shelf"))
    component.create_task(asyncio.sleep(3600))
    await component.shutdown()
    reference = weakref.ref(component)

    gc.disable()
    try:
        del component
        assert reference() is None
    finally:
        gc.enable()


def test_finaliser_raises_nothing_if_warnings_are_errors() -> None:
    program = (
        "from memtools import Component\n"
        "first = Component('first'); first.own([1])\n"
        "del first\n"
        "last = Component('last'); last.own([1])\n"
        "print('went on')\n"
    )

    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)

    assert (ran.returncode, ran.stdout) == (0, "went on\n")
    assert "ResourceWarning: first was never shut down" in ran.stderr


def test_repr_and_statistics_count_resources() -> None:
    component = Component("shop")
    items = component.own([1])

    assert repr(component) == "<Component 'shop' open tasks=0 owned=1>"
    assert component.statistics().to_dict() == {"name": "shop", "state": "open", "tasks": 0, "owned": 1, "failed": 0}
    component.release(items)
