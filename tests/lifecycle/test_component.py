"""What a component promises of its end."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from memtools import BoundedList, Component, ConfigError, ScopeClosed, WeakCache
from memtools.events import TaskAbandoned, subscribe


class Closing:
    """Says in a shared list when it was closed."""

    def __init__(self, said: list[str], name: str, error: BaseException | None = None) -> None:
        self._said, self._name, self._error = said, name, error

    def close(self) -> None:
        self._said.append(self._name)
        if self._error is not None:
            raise self._error


class ClosingLater(Closing):
    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.close()


class Stubborn:
    """Ends long after it was told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def aclose(self) -> None:
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue


async def test_everything_ends_in_reverse_order() -> None:
    said: list[str] = []
    async with Component("shop") as shop:
        for number in range(3):
            shop.own((Closing, ClosingLater)[number % 2](said, str(number)))

    assert said == ["2", "1", "0"]
    assert shop.statistics().state == "ended"
    assert shop.statistics().owned == 0


@pytest.mark.parametrize("method", ["shutdown", "aclose", "close", "stop", "clear"])
async def test_a_thing_ends_by_the_method_that_it_has(method: str) -> None:
    said: list[str] = []
    thing = type("Thing", (), {method: lambda self: said.append(method)})()
    async with Component() as component:
        assert component.own(thing) is thing

    assert said == [method]


async def test_the_most_thorough_method_goes_first_and_a_given_one_before_all() -> None:
    said: list[str] = []
    both = type("Both", (), {"close": lambda self: said.append("close"), "clear": lambda self: said.append("clear")})
    async with Component() as component:
        component.own(both())
        component.own(both(), close=lambda thing: said.append("given"))

    assert said == ["given", "close"]


async def test_caches_and_lists_are_empty_afterwards() -> None:
    async with Component() as component:
        recent, cache = component.own(BoundedList([1, 2], maxlen=5)), component.own(WeakCache())
        cache["a"] = 1

    assert not recent
    assert not cache


@pytest.mark.parametrize("thing", [3, object(), None, "text"])
async def test_what_cannot_be_ended_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="thing"):
        Component().own(thing)


async def test_a_close_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="close"):
        Component().own([], close="shut")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(("argument", "value"), [("name", ""), ("name", 3), ("grace", -1), ("grace", float("nan"))])
def test_arguments_that_make_no_sense_are_refused(argument: str, value: object) -> None:
    with pytest.raises(ConfigError, match=argument):
        Component(**{argument: value})


async def test_tasks_are_held_while_they_run_and_cancelled_in_the_end() -> None:
    component = Component()
    running = component.create_task(asyncio.sleep(3600))
    brief = component.create_task(asyncio.sleep(0))
    gone = weakref.ref(brief)
    await brief
    del brief
    await asyncio.sleep(0)
    gc.collect()

    assert gone() is None
    assert component.statistics().tasks == 1
    await component.shutdown()
    assert running.cancelled()


async def test_a_task_that_fails_is_told_at_once_and_the_component_goes_on() -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def fail() -> None:
        raise KeyError("x")

    async with Component("shop") as shop:
        shop.create_task(fail(), name="import")
        await asyncio.sleep(0.01)
        statistics = shop.statistics()

    assert [(context["message"], repr(context["exception"])) for context in told] == [
        ("task import of shop failed", "KeyError('x')")
    ]
    assert (statistics.failed, statistics.tasks, statistics.state) == (1, 0, "open")


async def test_what_fails_on_the_way_is_gathered_and_nothing_is_left_out() -> None:
    said: list[str] = []

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise OSError("task")

    shop = Component("shop")
    shop.own(Closing(said, "first"))
    shop.own(Closing(said, "second", ValueError("sync")))
    shop.own(ClosingLater(said, "third", KeyError("async")))
    shop.create_task(fails_when_cancelled(), name="import")
    await asyncio.sleep(0)

    with pytest.raises(ExceptionGroup, match="shop did not shut down cleanly") as failed:
        await shop.shutdown()

    assert said == ["third", "second", "first"]
    assert [type(error) for error in failed.value.exceptions] == [OSError, KeyError, ValueError]
    assert failed.value.exceptions[0].__notes__ == ["while task import of shop was ended"]


async def test_the_blocks_own_exception_goes_first(caplog) -> None:
    async def serve() -> None:
        async with Component("shop") as shop:
            shop.own(Closing([], "x", ValueError("hidden")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await serve()

    assert "shop did not shut down cleanly" in caplog.text
    assert "hidden" in caplog.text


async def test_a_system_exit_is_raised_bare_when_the_rest_has_ended() -> None:
    said: list[str] = []
    component = Component()
    component.own(Closing(said, "first"))
    component.own(Closing(said, "second", SystemExit(3)))

    with pytest.raises(SystemExit):
        await component.shutdown()

    assert said == ["second", "first"]


async def test_a_second_shutdown_waits_for_the_first_and_a_third_does_nothing() -> None:
    said: list[str] = []
    component = Component()
    component.own(ClosingLater(said, "once"))

    await asyncio.gather(component.shutdown(), component.shutdown())
    await component.shutdown()

    assert said == ["once"]


async def test_nothing_is_taken_after_the_end() -> None:
    component = Component("shop")
    await component.shutdown()

    with pytest.raises(ScopeClosed, match="shop"):
        component.own([])
    with pytest.raises(ScopeClosed, match="shop"):
        component.create_task(asyncio.sleep(0))
    with pytest.raises(ScopeClosed, match="shop"):
        async with component:
            raise AssertionError("entered")


async def test_nothing_is_taken_during_the_end_either() -> None:
    component = Component("shop")
    refused: list[BaseException] = []

    async def late() -> None:
        try:
            component.create_task(asyncio.sleep(3600))
        except ScopeClosed as error:
            refused.append(error)

    component.own(object(), close=lambda thing: late())
    await component.shutdown()

    assert len(refused) == 1


async def test_there_is_one_deadline_for_everything(caplog) -> None:
    heard: list[object] = []
    things = [Stubborn() for _ in range(5)]
    component = Component("shop", grace=0.05)
    for thing in things:
        component.own(thing)
    component.create_task(things[0].aclose(), name="stubborn")
    await asyncio.sleep(0)

    began = time.monotonic()
    with subscribe(heard.append), caplog.at_level(logging.WARNING), pytest.raises(ExceptionGroup) as failed:
        await component.shutdown()
    took_s = time.monotonic() - began

    for thing in things:
        thing.release.set()
    await asyncio.sleep(0.01)
    assert took_s < 2
    assert len(failed.value.exceptions) == 5
    assert all(isinstance(error, TimeoutError) for error in failed.value.exceptions)
    assert [event.task for event in heard if isinstance(event, TaskAbandoned)] == ["stubborn", *["Stubborn"] * 5]
    assert "shop abandons" in caplog.text


async def test_what_ends_at_once_ends_also_after_the_deadline() -> None:
    said: list[str] = []
    component = Component(grace=0)
    component.own(Closing(said, "sync"))
    component.own(ClosingLater(said, "async"))

    await component.shutdown()

    assert said == ["async", "sync"]


async def test_a_cancellation_passes_and_nothing_is_left_out() -> None:
    said: list[str] = []
    component = Component("shop", grace=60)
    component.own(Closing(said, "first"))
    slow = component.create_task(asyncio.sleep(3600))
    component.own(object(), close=lambda thing: asyncio.sleep(3600))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await component.shutdown()

    assert said == ["first"]
    assert slow.cancelled()
    assert component.statistics().state == "ended"
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancellation_passes_through_children_and_what_failed_is_logged(caplog) -> None:
    said: list[str] = []
    shop, shelf = Component("shop", grace=60), Component("shelf", grace=60)
    shop.own(Closing(said, "shop's", ValueError("hidden")))
    shop.own(shelf)
    shelf.own(Closing(said, "shelf's"))
    shelf.own(object(), close=lambda thing: asyncio.sleep(3600))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await shop.shutdown()

    assert said == ["shelf's", "shop's"]
    assert "hidden" in caplog.text


async def test_a_cancelled_block_still_shuts_down_with_its_grace() -> None:
    said: list[str] = []

    async def serve() -> None:
        async with Component() as component:
            component.own(ClosingLater(said, "closed"))
            await asyncio.sleep(3600)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert said == ["closed"]


async def test_a_task_of_the_component_may_shut_it_down() -> None:
    component = Component()
    other = component.create_task(asyncio.sleep(3600))

    async def quit_() -> str:
        await component.shutdown()
        return "done"

    assert await component.create_task(quit_()) == "done"
    assert other.cancelled()


async def test_children_end_with_their_parent_by_its_deadline() -> None:
    said: list[str] = []
    shop, shelf, stubborn = Component("shop", grace=0.05), Component("shelf", grace=60), Stubborn()
    shop.own(Closing(said, "shop's"))
    shop.own(shelf)
    shelf.own(Closing(said, "shelf's"))
    shelf.own(stubborn)
    assert shelf.parent is shop

    began = time.monotonic()
    with pytest.raises(ExceptionGroup) as failed:
        await shop.shutdown()
    stubborn.release.set()
    await asyncio.sleep(0)

    assert time.monotonic() - began < 2
    assert said == ["shelf's", "shop's"]
    assert failed.value.subgroup(TimeoutError) is not None
    assert shelf.statistics().state == "ended"


async def test_a_child_that_ends_first_is_owned_no_more() -> None:
    shop, shelf = Component("shop"), Component("shelf")
    shop.own(shelf)

    await shelf.shutdown()

    assert shop.statistics().owned == 0
    assert shelf.parent is None


async def test_a_circle_of_components_and_a_second_parent_are_refused() -> None:
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


async def test_what_is_disowned_is_left_alone() -> None:
    said: list[str] = []
    component = Component()
    thing = component.own(Closing(said, "x"))

    component.release(thing)
    component.release(thing)
    await component.shutdown()

    assert said == []


async def test_equal_and_unhashable_things_are_owned_each() -> None:
    first, second = [1], [1]
    async with Component() as component:
        for thing in (first, second, first):
            component.own(thing)
        assert component.statistics().owned == 2

    assert first == second == []


async def test_a_thread_pool_ends_off_the_loop() -> None:
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


async def test_a_pool_that_does_not_end_is_named_at_the_deadline() -> None:
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
async def test_a_process_pool_ends() -> None:
    from multiprocessing import get_context

    async with Component(grace=60) as component:
        pool = component.own(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        answer = await asyncio.get_running_loop().run_in_executor(pool, abs, -3)

    assert answer == 3
    with pytest.raises(RuntimeError):
        pool.submit(abs, -3)


def test_one_that_was_never_shut_down_says_so_when_it_goes() -> None:
    component = Component("shop")
    component.own([1])

    with pytest.warns(ResourceWarning, match="shop was never shut down: it has 0 tasks and 1 other things"):
        del component


def test_one_that_owned_nothing_or_was_never_made_goes_in_silence(recwarn) -> None:
    component = Component("shop")
    del component
    unmade = Component.__new__(Component)
    del unmade

    assert len(recwarn) == 0


async def test_unfinished_tasks_do_not_keep_it_alive_and_silent() -> None:
    component = Component("shop")
    task = component.create_task(asyncio.sleep(3600))

    with pytest.warns(ResourceWarning, match="shop was never shut down: it has 1 tasks"):
        del component

    task.cancel()


async def test_an_ended_one_leaves_no_circle_behind() -> None:
    component = Component("shop")
    component.own(Component("shelf"))
    component.create_task(asyncio.sleep(3600))
    await component.shutdown()
    gone = weakref.ref(component)

    gc.disable()
    try:
        del component
        assert gone() is None
    finally:
        gc.enable()


def test_the_finaliser_raises_nothing_even_where_warnings_are_errors() -> None:
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


def test_it_shows_what_it_owns() -> None:
    component = Component("shop")
    items = component.own([1])

    assert repr(component) == "<Component 'shop' open tasks=0 owned=1>"
    assert component.statistics().to_dict() == {"name": "shop", "state": "open", "tasks": 0, "owned": 1, "failed": 0}
    component.release(items)
