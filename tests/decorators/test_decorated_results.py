"""Calls that return work still to be done: it is followed, measured and limited as the call's own."""

import asyncio
import contextlib
import functools
import gc
import inspect
import types
import warnings

import pytest

from memtools import BudgetExceeded, bounded_history, memory_budget, memory_scope, profile_memory
from memtools.ledger import open_owners

SIZE = 30_000_000
METERS = pytest.mark.parametrize("meter", ["native", "tracemalloc"])


async def work():
    block = bytearray(SIZE)
    await asyncio.sleep(0)
    return len(block)


def items():
    for _ in range(2):
        yield len(bytearray(SIZE))


async def async_items():
    for _ in range(2):
        await asyncio.sleep(0)
        yield len(bytearray(SIZE))


@contextlib.contextmanager
def opened():
    block = bytearray(SIZE)
    yield len(block)


@contextlib.asynccontextmanager
async def session():
    block = bytearray(SIZE)
    await asyncio.sleep(0)
    yield len(block)


class Later:
    note = "kept"

    def __await__(self):
        return work().__await__()


class Session:
    async def __aenter__(self):
        return await work()

    async def __aexit__(self, *error):
        await asyncio.sleep(0)


class Job:
    async def __call__(self):
        return await work()


class Nightly(Job):
    """Its `async __call__` is inherited."""


async def _await(call):
    return await call()


async def _await_in_a_task(call):
    async def main():
        return await call()

    return await asyncio.create_task(main())


async def _iterate(call):
    return max(call())


async def _iterate_async(call):
    return max([item async for item in call()])


async def _enter(call):
    with call() as size:
        return size


async def _enter_async(call):
    async with call() as size:
        return size


SHAPES = {
    "coroutine": (lambda: work(), _await),
    "coroutine in a task": (lambda: work(), _await_in_a_task),
    "inherited async call": (Nightly(), _await),
    "partial of a coroutine function": (functools.partial(work), _await),
    "generator": (lambda: items(), _iterate),
    "generator expression": (lambda: (len(bytearray(SIZE)) for _ in range(2)), _iterate),
    "async generator": (lambda: async_items(), _iterate_async),
    "context manager": (opened, _enter),
    "async context manager": (session, _enter_async),
    "context manager of a lambda": (lambda: opened(), _enter),
    "awaitable of a class": (lambda: Later(), _await),
    "async context manager of a class": (lambda: Session(), _enter_async),
}
each_shape = pytest.mark.parametrize(("function", "use"), SHAPES.values(), ids=SHAPES)


@METERS
@each_shape
def test_budget_holds_for_what_the_call_returns(function, use, meter):
    limited = memory_budget("2 MiB", meter=meter)(function)

    with pytest.raises(BudgetExceeded):
        asyncio.run(use(limited))

    assert open_owners() == ()


@METERS
@each_shape
def test_work_and_call_are_one_measured_call(function, use, meter):
    profiled = profile_memory(meter=meter)(function)

    assert asyncio.run(use(profiled)) == SIZE

    statistics = profiled.memory.statistics()
    assert (statistics.calls, statistics.failures, statistics.active) == (1, 0, 0)
    assert statistics.max_peak_bytes > SIZE


@each_shape
def test_history_has_one_record_of_work_and_call(function, use):
    remembered = bounded_history(5)(function)

    assert asyncio.run(use(remembered)) == SIZE

    assert [call.outcome for call in remembered.history] == ["ok"]


def test_memory_scope_as_a_decorator_follows_a_coroutine():
    @memory_scope("limited", budget="2 MiB")
    def start():
        return work()

    with pytest.raises(BudgetExceeded):
        asyncio.run(_await(start))


def test_what_the_call_itself_holds_counts_with_its_coroutine():
    @profile_memory(meter="tracemalloc")
    def start():
        block = bytearray(SIZE)

        async def later():
            return len(block) + await work()

        return later()

    assert asyncio.run(_await(start)) == 2 * SIZE
    assert start.memory.last.peak_bytes > 2 * SIZE


@METERS
def test_consumer_of_a_returned_context_manager_is_not_charged(meter):
    profiled = profile_memory(meter=meter)(opened)

    with profiled():
        kept = bytearray(3 * SIZE)

    assert len(kept) == 3 * SIZE
    assert SIZE < profiled.memory.last.peak_bytes < 2 * SIZE


def test_context_manager_that_decorates_is_followed_at_each_call():
    profiled = profile_memory(opened)

    @profiled()
    def body():
        return 1

    assert body() + body() == 2
    gc.collect()

    assert profiled.memory.statistics().max_peak_bytes > SIZE
    assert open_owners() == ()


@METERS
def test_generator_is_stopped_at_the_step_after_the_excess(meter):
    @memory_budget("2 MiB", meter=meter)
    def grow():
        kept = []
        while True:
            kept.append(bytearray(1_000_000))
            yield len(kept)

    taken = []
    with pytest.raises(BudgetExceeded):
        taken.extend(grow())

    assert len(taken) <= 3


def start_work():
    return work()


@pytest.mark.parametrize("make", [start_work, lambda: items(), lambda: async_items(), opened, session, Later])
def test_result_that_is_never_used_ends_the_call(make):
    profiled = profile_memory(lambda: make())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = profiled()
        assert profiled.memory.statistics().active == 1
        del result
        gc.collect()

    assert [str(warning.message) for warning in caught] == ["coroutine 'work' was never awaited"] * (make is start_work)
    assert (profiled.memory.statistics().active, profiled.memory.statistics().failures) == (0, 0)
    assert open_owners() == ()


async def test_results_keep_their_kind():
    running = profile_memory(lambda: work())()
    assert inspect.iscoroutine(running)
    running.close()
    assert inspect.isgenerator(profile_memory(lambda: items())())
    assert inspect.isasyncgen(profile_memory(lambda: async_items())())
    assert isinstance(profile_memory(opened)(), contextlib.AbstractContextManager)
    later = profile_memory(lambda: Later())()
    assert isinstance(later, Later)
    assert later.note == "kept"


async def test_task_that_a_call_returns_is_the_same_and_not_exact():
    profiled = profile_memory(lambda: asyncio.ensure_future(work()))

    task = profiled()

    assert type(task) is asyncio.Task
    assert not profiled.memory.last.exact
    assert "Task" in profiled.memory.last.note
    assert await task == SIZE


def test_object_with_further_special_methods_is_left_alone():
    class Query(Later):
        def __len__(self):
            return 3

    profiled = profile_memory(lambda: Query())

    assert type(profiled()) is Query
    assert not profiled.memory.last.exact


def test_object_that_other_code_holds_is_left_alone():
    shared = Later()
    profiled = profile_memory(lambda: shared)

    assert profiled() is shared
    assert profiled.memory.last.exact


@pytest.mark.parametrize("decorate", [profile_memory, memory_budget("1 GiB"), bounded_history(3), memory_scope("g")])
def test_generator_based_coroutine_can_be_awaited(decorate):
    @decorate
    @types.coroutine
    def pause():
        yield
        return 5

    async def main():
        running = pause()
        assert inspect.isawaitable(running)
        return await running

    assert asyncio.run(main()) == 5


def test_error_thrown_into_a_returned_generator_reaches_it():
    @profile_memory
    def start():
        def inner():
            try:
                yield 1
            except KeyError:
                yield "caught"

        return inner()

    running = start()
    next(running)

    assert running.throw(KeyError()) == "caught"
    running.close()
    assert start.memory.statistics().failures == 0


async def test_error_in_the_block_of_a_session_reaches_it():
    seen = []

    class Watching:
        async def __aenter__(self):
            return self

        async def __aexit__(self, kind, error, trace):
            seen.append(kind)
            return kind is KeyError

    profiled = profile_memory(lambda: Watching())

    async with profiled() as entered:
        assert type(entered) is Watching
        raise KeyError
    with pytest.raises(LookupError):
        async with profiled():
            raise LookupError

    assert seen == [KeyError, LookupError]
    assert profiled.memory.statistics().failures == 1
