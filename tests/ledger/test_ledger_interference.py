"""Threads, forks, collections and other users of tracemalloc, which must not change an owner's figures."""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import multiprocessing
import os
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from memtools.ledger import Meter, Owner, bind_to_current, choose_meter, native_reason, track_tasks
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner
from memtools.scopes import memory_scope

MB = 1_000_000
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
credits_collections = pytest.mark.skipif(
    not HAS_GIL, reason="without a GIL, each collection examines what all threads made"
)


def near(truth: int) -> Any:
    # Any: what pytest.approx returns has no public type.
    return pytest.approx(truth, rel=0.02, abs=64_000)


def scope(name: str) -> memory_scope:
    return memory_scope(name, meter="tracemalloc")


def sixty(store: list[bytearray]) -> None:
    for _ in range(60):
        store.append(bytearray(MB))
        time.sleep(0.0001)  # lets the loop run


async def short_steps(until: asyncio.Event) -> memory_scope:
    async with scope("bystander") as opened:
        while not until.is_set():  # noqa: ASYNC110  # many short steps are needed
            await asyncio.sleep(0)
    return opened


@pytest.fixture
def no_forced_switches() -> Iterator[None]:
    """Switch threads only where one of them waits: a switch inside a step is a known limit of the meter."""
    if not HAS_GIL:
        pytest.skip("threads run at once, and tracemalloc cannot tell them apart")
    before = sys.getswitchinterval()
    sys.setswitchinterval(10.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("way", ["to_thread", "default executor", "own executor"])
async def test_worker_thread_is_charged_to_the_task_that_called_it(way: str, no_forced_switches: None) -> None:
    store: list[bytearray] = []
    done = asyncio.Event()

    async def works() -> memory_scope:
        loop = asyncio.get_running_loop()
        async with scope("works") as opened:
            if way == "to_thread":
                await asyncio.to_thread(sixty, store)
            elif way == "default executor":
                await loop.run_in_executor(None, sixty, store)
            else:
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    await loop.run_in_executor(pool, sixty, store)
        done.set()
        return opened

    with track_tasks(meter="tracemalloc"):
        task, bystander = asyncio.create_task(works()), asyncio.create_task(short_steps(done))
        charged, innocent = await task, await bystander
    await asyncio.get_running_loop().shutdown_default_executor()

    assert charged.usage.retained_bytes == pytest.approx(60 * MB, rel=0.02)
    assert abs(innocent.usage.retained_bytes) < MB
    assert not charged.usage.exact
    assert "threads" in charged.usage.note


def test_bound_function_is_charged_to_its_owner(session: Meter) -> None:
    store: list[bytearray] = []

    with scope("sender") as opened:
        thread = threading.Thread(target=bind_to_current(functools.partial(sixty, store)))
        thread.start()
        thread.join()

    assert opened.usage.retained_bytes == near(60 * MB)


def test_scope_in_bound_function_is_a_child_of_its_owner(session: Meter) -> None:
    inside: list[memory_scope] = []

    def work() -> None:
        with scope("inside") as opened:
            inside.append(opened)

    with scope("sender") as sender:
        thread = threading.Thread(target=bind_to_current(work))
        thread.start()
        thread.join()

    assert inside[0].owner.parent is sender.owner


def test_bind_without_an_owner_returns_the_function_itself() -> None:
    assert bind_to_current(sixty) is sixty


def test_bound_function_shows_its_name_and_passes_its_exception(session: Meter) -> None:
    def fails() -> None:
        raise LookupError("mine")

    with scope("sender"):
        carried = bind_to_current(fails)

    assert "fails" in repr(carried)
    with pytest.raises(LookupError, match="mine"):
        carried()


def square(number: int) -> int:
    return number * number


@pytest.mark.leaves("descriptor", reason="multiprocessing keeps its resource tracker and fork server")
async def test_process_pool_gets_the_unbound_function() -> None:
    loop = asyncio.get_running_loop()

    async def works() -> int:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return await loop.run_in_executor(pool, abs, -3)

    with track_tasks(meter="tracemalloc"):
        assert await asyncio.create_task(works()) == 3


def test_scopes_in_two_threads_add_up_and_are_not_exact(session: Meter) -> None:
    store: list[bytearray] = []
    barrier = threading.Barrier(2, timeout=10)
    found: list[memory_scope] = []

    def work() -> None:
        with scope("thread") as opened:
            barrier.wait()
            store.extend(bytearray(MB) for _ in range(20))
            barrier.wait()
        found.append(opened)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(opened.usage.retained_bytes for opened in found) == near(40 * MB)
    assert not any(opened.usage.exact for opened in found)


@pytest.mark.skipif(not HAS_GIL, reason="without a GIL, nothing tells in time that a thread is idle")
def test_idle_thread_pool_leaves_figures_exact(session: Meter) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
        settled = threading.Event()
        settled.wait(0.05)  # the workers wait for their queue again

        with scope("beside idle threads") as opened:
            block = bytearray(MB)

    assert opened.usage.exact
    del block


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_in_an_open_scope_leaves_both_sides_right(session: Meter) -> None:
    read, write = os.pipe()

    with scope("forked") as opened:
        kept = bytearray(5 * MB)
        child = os.fork()
        if child == 0:
            try:
                more = bytearray(10 * MB)
                with scope("in the child") as inner:
                    even_more = bytearray(2 * MB)
                told = f"{opened.usage.retained_bytes} {inner.usage.retained_bytes}"
                os.write(write, told.encode())
                del more, even_more
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    in_child = [int(number) for number in os.read(read, 100).split()]
    os.close(read)
    os.close(write)

    assert opened.usage.retained_bytes == near(5 * MB)
    assert in_child == [near(17 * MB), near(2 * MB)]
    del kept


class Cycle:
    def __init__(self, size: int) -> None:
        self.block = bytearray(size)
        self.me = self


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


async def test_collection_in_a_step_does_not_credit_its_task(session: Meter, no_collector: None) -> None:
    async def guilty() -> None:
        Cycle(50 * MB)
        await asyncio.sleep(0.001)

    async def innocent() -> None:
        await asyncio.sleep(0.002)
        gc.collect()
        await asyncio.sleep(0)

    owners: dict[str, Owner] = {}

    def keep(owner: Owner, _error: BaseException | None) -> None:
        owners[owner.name] = owner

    await asyncio.gather(
        *(TrackedCoroutine(each(), session, name=each.__name__, on_end=keep) for each in (guilty, innocent)),
    )

    usage = owners["innocent"].usage
    assert usage is not None
    assert (usage.retained_bytes, usage.peak_bytes) == (near(0), near(0))
    assert usage.exact
    assert owners["guilty"].live_bytes == near(50 * MB)


@credits_collections
def test_function_that_collects_its_own_cycles_is_credited(no_collector: None) -> None:
    with scope("alone in its session") as opened:
        Cycle(50 * MB)
        gc.collect()

    assert opened.usage.retained_bytes == near(0)
    assert opened.usage.peak_bytes == near(50 * MB)
    assert opened.usage.exact


@credits_collections
def test_second_collection_in_one_segment_is_credited(session: Meter, no_collector: None) -> None:
    with scope("before"):
        Cycle(30 * MB)

    with scope("collects") as opened:
        gc.collect()
        Cycle(50 * MB)
        gc.collect()

    assert opened.usage.retained_bytes == near(0)
    assert opened.usage.exact


def test_owner_whose_garbage_may_be_collected_is_not_exact(session: Meter, no_collector: None) -> None:
    with scope("before"):
        pass
    with scope("cannot tell") as opened:
        kept = Cycle(10 * MB)
        Cycle(50 * MB)
        gc.collect()

    assert opened.usage.retained_bytes == near(60 * MB)
    assert "garbage collector" in opened.usage.note
    assert not opened.usage.exact
    kept.me = None  # type: ignore[assignment]  # breaks the cycle


def test_bytes_freed_by_a_collection_are_accounted_for(session: Meter, no_collector: None) -> None:
    with scope("makes"):
        Cycle(50 * MB)
    before = session.unattributed_bytes

    with scope("innocent"):
        gc.collect()

    assert session.unattributed_bytes - before == near(-50 * MB)


def test_finaliser_may_open_a_scope_during_a_collection(session: Meter, no_collector: None) -> None:
    found: list[memory_scope] = []
    store: list[bytearray] = []

    class Final:
        def __init__(self) -> None:
            self.me = self
            self.block = bytearray(20 * MB)

        def __del__(self) -> None:
            with scope("finaliser") as opened:
                store.append(bytearray(3 * MB))
            found.append(opened)

    with scope("innocent") as innocent:
        Final()
        gc.collect()

    assert found[0].usage.retained_bytes == near(3 * MB)
    assert found[0].owner.parent is innocent.owner


def test_collector_callbacks_exist_only_while_an_owner_is_open() -> None:
    before = list(gc.callbacks)
    with scope("measured"):
        during = list(gc.callbacks)

    assert len(during) == len(before) + 1
    assert gc.callbacks == before


def test_sessions_are_reference_counted_and_ended() -> None:
    with scope("outer"):
        with scope("inner"):
            pass
        assert tracemalloc.is_tracing()

    assert not tracemalloc.is_tracing()


def test_foreign_session_is_used_and_not_ended() -> None:
    tracemalloc.start(5)
    try:
        with scope("guest") as opened:
            block = bytearray(5 * MB)

        assert opened.usage.retained_bytes == near(5 * MB)
        assert tracemalloc.is_tracing()
        assert tracemalloc.get_traceback_limit() == 5
        del block
    finally:
        tracemalloc.stop()


def test_foreign_start_during_a_session_changes_nothing() -> None:
    with scope("host") as opened:
        tracemalloc.start(5)
        block = bytearray(5 * MB)

    assert opened.usage.retained_bytes == near(5 * MB)
    assert opened.usage.exact
    del block


@pytest.mark.parametrize("interference", ["stop", "clear", "stop and start"])
def test_foreign_stop_or_clear_makes_only_open_scopes_inexact(interference: str) -> None:
    with scope("outer") as outer:
        block = bytearray(5 * MB)
        with scope("open") as opened:
            if interference == "clear":
                tracemalloc.clear_traces()
            else:
                tracemalloc.stop()
            if interference == "stop and start":
                tracemalloc.start()
        with scope("later") as later:
            more = bytearray(3 * MB)

    assert [("tracemalloc" in each.usage.note, each.usage.exact) for each in (outer, opened)] == [(True, False)] * 2
    assert later.usage.retained_bytes == near(3 * MB)
    assert later.usage.exact
    assert not tracemalloc.is_tracing()
    del block, more


def test_foreign_reset_of_the_peak_leaves_retained_right() -> None:
    with scope("reset") as opened:
        block = bytearray(5 * MB)
        tracemalloc.reset_peak()

    assert (opened.usage.retained_bytes, opened.usage.peak_bytes) == (near(5 * MB), near(5 * MB))
    del block


def test_owner_closed_in_another_thread_is_not_exact(session: Meter) -> None:
    owner = open_owner("travels", "scope", meter=session)
    thread = threading.Thread(target=contextvars.copy_context().run, args=(close_owner, owner))
    thread.start()
    thread.join()

    assert owner.usage is not None
    assert not owner.usage.exact
    close_owner(open_owner("takes the turn from it", "scope", meter=session))


def test_meters_are_chosen_by_name_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from memtools.errors import ConfigError

    assert choose_meter().name == ("rss" if native_reason() else "native")
    monkeypatch.setenv("MEMTOOLS_METER", "tracemalloc")
    assert choose_meter().name == "tracemalloc"
    monkeypatch.setenv("MEMTOOLS_METER", "tracd")
    with pytest.raises(ConfigError, match="MEMTOOLS_METER"):
        choose_meter()
    with pytest.raises(ConfigError, match="meter"):
        choose_meter(3)  # type: ignore[arg-type]  # on purpose


def test_meter_keeps_no_reference_to_a_closed_scope(session: Meter) -> None:
    with scope("gone") as opened:
        pass
    owner = weakref.ref(opened.owner)

    del opened

    assert owner() is None
