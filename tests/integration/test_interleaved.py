"""Real memory, real event loops: each task is charged with its own bytes, whatever runs in between its steps."""

import asyncio
import functools
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from memtools.ledger import Usage, choose_meter, track_tasks
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.scopes import memory_scope

MB = 1_000_000
SLACK = 0.02
Sleep = Callable[[float], Awaitable[None]]

# The name of a job, bytes that it keeps, bytes that it drops between two steps, and its true (peak, retained).
JOBS = {
    "keeps": (50 * MB, 0, 50 * MB, 50 * MB),
    "drops": (0, 50 * MB, 50 * MB, 0),
    "small": (1 * MB, 4 * MB, 5 * MB, 1 * MB),
    "idle": (0, 0, 0, 0),
}
OTHER_BYTES = 70 * MB


def near(truth: int) -> Any:
    # Any: what pytest.approx returns has no public type. 64 kB: frames, futures and timers of the job itself.
    return pytest.approx(truth, rel=SLACK, abs=64_000)


async def job(name: str, sleep: Sleep, store: list[bytearray]) -> None:
    keep, drop, _, _ = JOBS[name]
    for _ in range(2):
        await sleep(0.001)
    kept = bytearray(keep)
    await sleep(0.002)
    dropped = bytearray(drop)
    await sleep(0.003)
    if keep:
        store.append(kept)
    del kept, dropped
    await sleep(0.002)


async def other_task(sleep: Sleep) -> None:
    for _ in range(3):
        block = bytearray(OTHER_BYTES)
        await sleep(0.002)
        del block
        await sleep(0.001)


def driven(name: str, inner: Coroutine[Any, Any, None], usages: dict[str, Usage]) -> TrackedCoroutine[None]:
    return TrackedCoroutine(
        inner,
        choose_meter("tracemalloc"),
        name=name,
        kind="call",
        on_end=lambda owner, error: usages.__setitem__(name, owner.usage),
    )


def check(usages: dict[str, Usage]) -> None:
    assert {name: (usage.peak_bytes, usage.retained_bytes) for name, usage in usages.items()} == {
        name: (near(peak), near(retained)) for name, (_, _, peak, retained) in JOBS.items()
    }
    assert {name: usage.note for name, usage in usages.items()} == dict.fromkeys(JOBS, "")
    assert all(usage.exact and usage.meter == "tracemalloc" for usage in usages.values())


@contextmanager
def session() -> Iterator[None]:
    """Hold one tracemalloc session, as a program does that traces from its start."""
    owner = open_owner("program", "scope", meter=choose_meter("tracemalloc"))
    try:
        yield
    finally:
        close_owner(owner)


def run_asyncio(main: Callable[[Sleep], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main(asyncio.sleep))


def run_uvloop(main: Callable[[Sleep], Coroutine[Any, Any, None]]) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop has no build for this platform")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(asyncio.sleep))


KEEPS_A_PIPE = pytest.mark.leaves("descriptor", reason="libuv keeps one pipe for signals in each process")
ON_LOOPS = pytest.mark.parametrize("run", [run_asyncio, pytest.param(run_uvloop, marks=KEEPS_A_PIPE)])
FOLLOWS_FRAMES = pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")


def naive(found: dict[str, tuple[int, int]], name: str) -> Callable[..., Any]:
    """Measure as the decorators do that people write: start at the head of the call, stop at its end."""

    def decorate(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
        @functools.wraps(function)
        async def measured(*args: object) -> None:
            tracemalloc.start()
            await function(*args)
            found[name] = tracemalloc.get_traced_memory()
            tracemalloc.stop()

        return measured

    return decorate


async def fifty(store: list[bytearray]) -> None:
    await asyncio.sleep(0.001)
    store.append(bytearray(50 * MB))
    await asyncio.sleep(0.004)


async def one(store: list[bytearray]) -> None:
    store.append(bytearray(1 * MB))
    await asyncio.sleep(0.002)


async def test_naive_figures_are_wrong_where_tracked_ones_are_right() -> None:
    found: dict[str, tuple[int, int]] = {}
    usages: dict[str, Usage] = {}
    store: list[bytearray] = []

    async def late_task() -> None:
        await asyncio.sleep(0.001)
        store.append(bytearray(25 * MB))

    await asyncio.gather(naive(found, "fifty")(fifty)(store), naive(found, "one")(one)(store), late_task())
    store.clear()
    with session():
        await asyncio.gather(driven("fifty", fifty(store), usages), driven("one", one(store), usages), late_task())

    # The quick one is charged with what ran beside it, and its stop() takes the other's figures away.
    assert found["fifty"] == (0, 0)
    assert found["one"][0] > 25 * MB
    assert usages["fifty"].retained_bytes == near(50 * MB)
    assert usages["one"].retained_bytes == near(1 * MB)


@ON_LOOPS
def test_tracked_calls_are_charged_with_their_own_bytes(run: Callable[..., None]) -> None:
    usages: dict[str, Usage] = {}

    async def main(sleep: Sleep) -> None:
        store: list[bytearray] = []
        calls = [driven(name, job(name, sleep, store), usages) for name in JOBS]
        await asyncio.gather(*calls, other_task(sleep))

    with session():
        run(main)

    check(usages)


@ON_LOOPS
def test_tasks_of_a_tracked_loop_are_charged_with_own_bytes(run: Callable[..., None]) -> None:
    usages: dict[str, Usage] = {}

    async def followed(name: str, sleep: Sleep, store: list[bytearray]) -> None:
        async with memory_scope(name, meter="tracemalloc") as scope:
            await job(name, sleep, store)
        usages[name] = scope.usage

    async def main(sleep: Sleep) -> None:
        store: list[bytearray] = []
        with track_tasks(meter="tracemalloc"):
            await asyncio.gather(*(followed(name, sleep, store) for name in JOBS), other_task(sleep))

    run(main)

    check(usages)


@FOLLOWS_FRAMES
@ON_LOOPS
def test_scopes_in_untracked_tasks_are_charged_with_own_bytes(run: Callable[..., None]) -> None:
    usages: dict[str, Usage] = {}

    async def scoped(name: str, sleep: Sleep, store: list[bytearray]) -> None:
        async with memory_scope(name, meter="tracemalloc") as scope:
            await job(name, sleep, store)
        usages[name] = scope.usage

    async def main(sleep: Sleep) -> None:
        store: list[bytearray] = []
        await asyncio.gather(*(scoped(name, sleep, store) for name in JOBS), other_task(sleep))

    with session():
        run(main)

    check(usages)


async def nested(name: str, sleep: Sleep, usages: dict[str, Usage]) -> None:
    async with memory_scope(f"{name} outer", meter="tracemalloc") as outer:
        kept = bytearray(10 * MB)
        await sleep(0.001)
        async with memory_scope(f"{name} inner", meter="tracemalloc") as inner:
            dropped = bytearray(20 * MB)
            await sleep(0.002)
            del dropped
            more = bytearray(5 * MB)
            await sleep(0.001)
        del kept
        await sleep(0.001)
    usages["outer"], usages["inner"] = outer.usage, inner.usage
    del more


async def _nested_beside_another_task(sleep: Sleep, usages: dict[str, Usage]) -> None:
    await asyncio.gather(nested("a", sleep, usages), nested("b", sleep, {}), other_task(sleep))


def _check_nested(usages: dict[str, Usage]) -> None:
    assert (usages["inner"].peak_bytes, usages["inner"].retained_bytes) == (near(20 * MB), near(5 * MB))
    assert (usages["outer"].peak_bytes, usages["outer"].retained_bytes) == (near(30 * MB), near(5 * MB))
    assert usages["inner"].exact
    assert usages["outer"].exact


@ON_LOOPS
def test_nested_scopes_in_tracked_calls_add_up(run: Callable[..., None]) -> None:
    usages: dict[str, Usage] = {}

    async def main(sleep: Sleep) -> None:
        with track_tasks(meter="tracemalloc"):
            await _nested_beside_another_task(sleep, usages)

    run(main)

    _check_nested(usages)


@FOLLOWS_FRAMES
@ON_LOOPS
def test_nested_scopes_add_up(run: Callable[..., None]) -> None:
    usages: dict[str, Usage] = {}

    async def main(sleep: Sleep) -> None:
        await _nested_beside_another_task(sleep, usages)

    with session():
        run(main)

    _check_nested(usages)


async def test_parent_holds_what_its_tasks_hold_at_the_same_time() -> None:
    usages: dict[str, Usage] = {}
    store: list[bytearray] = []

    async with Owned("parent") as parent:
        await asyncio.gather(*(driven(name, job(name, asyncio.sleep, store), usages) for name in JOBS))

    check(usages)
    assert parent.usage is not None
    assert parent.usage.retained_bytes == near(51 * MB)
    assert 100 * MB <= parent.usage.peak_bytes <= 106 * MB


class Owned:
    """An owner for a block of a test whose own task does nothing while it waits."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __aenter__(self) -> Any:
        self._owner = open_owner(self._name, "scope", meter=choose_meter("tracemalloc"))
        return self._owner

    async def __aexit__(self, *_: object) -> None:
        close_owner(self._owner)


def _trio_sleep() -> tuple[Any, Sleep]:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    return trio, trio.sleep


def test_tracked_calls_on_trio_are_charged_with_own_bytes() -> None:
    trio, sleep = _trio_sleep()
    usages: dict[str, Usage] = {}

    async def call(name: str, store: list[bytearray]) -> None:
        await driven(name, job(name, sleep, store), usages)

    async def main() -> None:
        store: list[bytearray] = []
        async with trio.open_nursery() as nursery:
            for name in JOBS:
                nursery.start_soon(call, name, store)
            nursery.start_soon(other_task, sleep)

    with session():
        trio.run(main)

    check(usages)


@FOLLOWS_FRAMES
def test_scopes_on_trio_are_charged_with_their_own_bytes() -> None:
    trio, sleep = _trio_sleep()
    usages: dict[str, Usage] = {}

    async def scoped(name: str, store: list[bytearray]) -> None:
        async with memory_scope(name, meter="tracemalloc") as scope:
            await job(name, sleep, store)
        usages[name] = scope.usage

    async def main() -> None:
        store: list[bytearray] = []
        async with trio.open_nursery() as nursery:
            for name in JOBS:
                nursery.start_soon(scoped, name, store)
            nursery.start_soon(other_task, sleep)

    with session():
        trio.run(main)

    check(usages)


async def pages(sleep: Sleep, peaks: list[int]) -> AsyncIterator[int]:
    async with memory_scope("pages", meter="tracemalloc") as scope:
        for number in range(3):
            page = bytearray(2 * MB)
            await sleep(0.001)
            yield number
            del page
            peaks.append(scope.usage.peak_bytes)


@FOLLOWS_FRAMES
@ON_LOOPS
def test_scope_in_an_async_generator_spares_its_consumer(run: Callable[..., None]) -> None:
    peaks: list[int] = []

    async def main(sleep: Sleep) -> None:
        kept: list[bytearray] = []
        async for _ in pages(sleep, peaks):
            kept.append(bytearray(30 * MB))
            await sleep(0.001)

    with session():
        run(main)

    assert peaks == [near(2 * MB)] * 3
