"""Budgets that stop an owner in the middle of its work, with the native meter."""

import asyncio
import gc
import io
import itertools
import json
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, subscribe
from memtools.ledger import _enforcement, active_owner, bind_to_current, native_reason, statistics, track_tasks
from memtools.scopes import memory_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

MIB = 2**20
BUDGET = 20 * MIB
ENOUGH = 30_000_000  # iterations after which any of these would be far above the budget, if it were not stopped


class Node:
    def __init__(self, before: "Node | None") -> None:
        self.before = before
        self.name = "x" * 50


def list_of_dicts() -> object:
    return [{"a": number} for number in range(ENOUGH)]


def append_strings() -> object:
    kept = []
    for number in range(ENOUGH):
        kept.append(str(number))  # noqa: PERF401  # a loop is needed
    return kept


def grow_bytearray() -> object:
    kept = bytearray()
    for _ in range(ENOUGH):
        kept.extend(b"x" * 10_000)
    return kept


def grow_list_by_slices() -> object:
    kept: list[int] = []
    for _ in range(ENOUGH):
        kept[len(kept) :] = range(1000)
    return kept


def fill_dict() -> object:
    return {number: "x" * 500 + str(number) for number in range(ENOUGH)}


def list_all_at_once() -> object:
    return [0] * ENOUGH


def write_to_a_buffer() -> object:
    kept = io.BytesIO()
    for _ in range(ENOUGH):
        kept.write(b"x" * 100_000)
    return kept


def join_a_list() -> object:
    return "".join([str(number) for number in range(ENOUGH)])


def sort_without_a_key() -> object:
    return sorted(str(number) for number in range(ENOUGH))


LARGE = "[" + ",".join(["[1.5,2.5]"] * 400_000) + "]"


def parse_one_large_document() -> object:
    return json.loads(LARGE)  # one C call, and only small blocks


def recurse_and_keep() -> object:
    def descend(depth: int) -> None:
        everything.append([None] * 50)
        if depth:
            descend(depth - 1)

    for _ in range(ENOUGH):
        descend(50)
    return everything


def fill_set() -> object:
    kept = set()
    for number in range(ENOUGH):
        kept.add(f"{'x' * 500} {number}")
    return kept


def join_a_generator() -> object:
    return "".join("x" * 1000 for _ in range(ENOUGH))


def sort_with_a_key() -> object:
    return sorted(range(ENOUGH // 100), key=lambda number: "x" * 1000 + str(number))


def parse_documents() -> object:
    document = json.dumps([{"id": number, "name": "x" * 20} for number in range(200)])
    return [json.loads(document) for _ in range(ENOUGH)]


def chain_objects() -> object:
    node = None
    for _ in range(ENOUGH):
        node = Node(node)
    while node is not None:  # or its end would recurse
        node = node.before
    return node


def recurse_into_tuples() -> object:
    kept: tuple[object, ...] = ()
    for number in range(ENOUGH):
        kept = (number, [None] * 20, *kept[:100])
        everything.append(kept)
    return kept


def consume_iterators() -> object:
    return list(map(str, itertools.takewhile(lambda number: number < ENOUGH, itertools.count())))


everything: list[object] = []


def map_a_function() -> object:
    return list(map(lambda number: [number] * 20, range(ENOUGH)))  # noqa: C417  # a call of Python code is needed


RUNAWAYS: list[Callable[[], object]] = [
    list_of_dicts, append_strings, grow_bytearray, grow_list_by_slices, fill_dict, fill_set, join_a_generator,
    sort_with_a_key, parse_documents, chain_objects, recurse_into_tuples, consume_iterators, write_to_a_buffer,
    join_a_list, sort_without_a_key, recurse_and_keep, map_a_function,
]  # fmt: skip


def sort_a_copy() -> object:
    return sorted(NUMBERS)


def map_in_c() -> object:
    return list(map(str, NUMBERS))


def join_many_blocks() -> object:
    return b"".join([BLOCK] * 60)


BLOCK = b"x" * MIB
NUMBERS = range(1_000_000)
# One call of C without bytecode: nothing can be raised before it returns.
ONE_CALL: list[Callable[[], object]] = [
    parse_one_large_document, sort_a_copy, map_in_c, join_many_blocks, list_all_at_once,
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    everything.clear()


def stopped(runaway: Callable[[], object], found: list[tuple[BudgetExceeded, int]]) -> None:
    """Run it under a budget; record the error and the peak."""
    scope = memory_scope("runaway", meter="native", budget=BUDGET)
    try:
        with scope:
            runaway()
    except BudgetExceeded as error:
        found.append((error.with_traceback(None), scope.usage.peak_bytes))


def check(found: list[tuple[BudgetExceeded, int]]) -> None:
    ((error, peak),) = found
    assert type(error) is BudgetExceeded
    assert (error.scope, error.budget_bytes, error.measure) == ("runaway", BUDGET, "peak")
    assert error.used_bytes > BUDGET
    assert peak <= BUDGET * 1.1 + MIB


@pytest.mark.parametrize("runaway", RUNAWAYS, ids=lambda runaway: runaway.__name__)
def test_runaway_is_stopped_at_its_budget(runaway: Callable[[], object]) -> None:
    found: list[tuple[BudgetExceeded, int]] = []

    stopped(runaway, found)

    check(found)


@pytest.mark.parametrize("runaway", RUNAWAYS, ids=lambda runaway: runaway.__name__)
def test_runaway_in_another_thread_is_stopped_there(runaway: Callable[[], object]) -> None:
    found: list[tuple[BudgetExceeded, int]] = []

    thread = threading.Thread(target=stopped, args=(runaway, found))
    thread.start()
    thread.join()

    check(found)


@pytest.mark.parametrize("call", ONE_CALL, ids=lambda call: call.__name__)
def test_what_one_call_of_c_takes_is_in_the_error(call: Callable[[], object]) -> None:
    found: list[tuple[BudgetExceeded, int]] = []

    stopped(call, found)

    ((error, peak),) = found
    assert error.used_bytes == peak > 1.5 * BUDGET


TOO_MANY = 10 * BUDGET // 856  # lists of 100 items


def swallow_in_a_loop(kept: list[object]) -> None:
    while len(kept) < TOO_MANY:
        try:
            while len(kept) < TOO_MANY:
                kept.append([0] * 100)
        except Exception:  # the fault of the program
            pass


def swallow_in_a_function(kept: list[object]) -> None:
    def careless(number: int) -> None:
        try:
            kept.append([number] * 100)
        except Exception:
            kept.append(None)

    for number in range(TOO_MANY):
        careless(number)


def swallow_and_raise_another(kept: list[object]) -> None:
    while len(kept) < TOO_MANY:
        try:
            kept.extend([number] * 100 for number in range(10_000))
        except RuntimeError as error:
            try:
                raise ValueError("no more rows") from error
            except ValueError:
                continue


def swallow_in_a_mapped_function(kept: list[object]) -> None:
    def careless(number: int) -> None:
        with suppress(Exception):
            kept.append([number] * 100)

    list(map(careless, range(TOO_MANY)))


SWALLOWERS: list[Callable[[list[object]], None]] = [
    swallow_in_a_loop, swallow_in_a_function, swallow_and_raise_another, swallow_in_a_mapped_function,
]  # fmt: skip


@pytest.mark.parametrize("is_elsewhere", [False, True])
@pytest.mark.parametrize("swallower", SWALLOWERS, ids=lambda swallower: swallower.__name__)
def test_code_that_catches_every_exception_is_stopped(
    swallower: Callable[[list[object]], None], is_elsewhere: bool
) -> None:
    found: list[tuple[BudgetExceeded, int]] = []

    def run() -> None:
        stopped(lambda: swallower([]), found)

    if is_elsewhere:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()

    ((error, peak),) = found
    assert type(error) is BudgetExceeded
    assert peak <= BUDGET * 1.5


def test_stop_that_is_swallowed_again_is_raised_at_the_end() -> None:
    caught: list[str] = []
    before = statistics().ignored_stops
    scope = memory_scope("deaf", meter="native", budget=BUDGET)

    def deaf() -> None:
        kept: list[object] = []
        for _ in range(1000):
            try:
                kept.extend(bytearray(1000) for _ in range(200))
            except BaseException as error:
                caught.append(type(error).__name__)

    with pytest.raises(BudgetExceeded) as raised, scope:
        deaf()

    assert caught == ["BudgetExceeded", "BudgetStop"]
    assert statistics().ignored_stops == before + 1
    assert raised.value.used_bytes == scope.usage.peak_bytes > 5 * BUDGET


def test_error_that_replaces_the_second_stop_becomes_its_cause() -> None:
    def deaf() -> None:
        kept: list[object] = []
        for _ in range(1000):
            try:
                kept.extend(bytearray(1000) for _ in range(200))
            except Exception:  # the fault of the program
                continue
            except BaseException as error:
                raise ValueError("lost") from error

    with pytest.raises(BudgetExceeded) as raised, memory_scope("deaf", meter="native", budget=BUDGET):
        deaf()

    assert isinstance(raised.value.__cause__, ValueError)


async def test_stop_in_a_group_of_tasks_becomes_budget_exceeded() -> None:
    async def greedy() -> None:
        await asyncio.sleep(0)
        swallow_in_a_loop([])

    @memory_budget(BUDGET, meter="native")
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(greedy())

    with track_tasks(), pytest.raises(BudgetExceeded):
        await parent()


def test_outer_owner_that_is_stopped_passes_an_inner_one() -> None:
    outer = memory_scope("outer", meter="native", budget=BUDGET)

    with pytest.raises(BudgetExceeded) as raised, outer, memory_scope("inner", meter="native", budget=10 * BUDGET):
        swallow_in_a_loop([])

    assert raised.value.scope == "outer"


class Watched:
    """Can be weakly referenced."""


def test_exception_that_the_interpreter_drops_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: None)

    def forget_it(_: object) -> None:
        kept.extend(bytearray(1000) for _ in range(BUDGET // 1000 + 100))

    watched = [Watched()]
    reference = weakref.ref(watched[0], forget_it)
    with pytest.raises(BudgetExceeded), memory_scope("told", meter="native", budget=BUDGET):
        watched.clear()

    assert reference() is None


class Cleaner:
    """Gives back in a loop what it holds, and takes some memory for that."""

    def __init__(self) -> None:
        self.given_back = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *about: object) -> None:
        self.kept = []
        for _ in range(500):
            self.kept.append(bytes(1000))
            self.given_back += 1


def test_clean_up_is_not_stopped_within_half_of_the_grace() -> None:
    cleaner = Cleaner()

    def run() -> None:
        with cleaner:
            kept = bytes(BUDGET - 1000)
        list_of_dicts()
        del kept

    with pytest.raises(BudgetExceeded), memory_scope("clean", meter="native", budget=BUDGET):
        run()

    assert cleaner.given_back == 500


def test_runaway_in_a_clean_up_is_stopped() -> None:
    scope = memory_scope("unclean", meter="native", budget=BUDGET)

    def run() -> None:
        try:
            raise ValueError
        except ValueError:
            list_of_dicts()
        finally:
            append_strings()

    with pytest.raises(BudgetExceeded), scope:
        run()

    assert scope.usage.peak_bytes <= BUDGET * 1.5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")
def test_no_tool_id_is_kept_after_an_owner_was_stopped() -> None:
    before = [sys.monitoring.get_tool(tool) for tool in range(6)]
    found: list[tuple[BudgetExceeded, int]] = []

    thread = threading.Thread(target=stopped, args=(list_of_dicts, found))
    thread.start()
    thread.join()

    assert len(found) == 1
    assert [sys.monitoring.get_tool(tool) for tool in range(6)] == before
    assert not _enforcement._pending


def test_threads_over_budget_at_once_are_each_stopped() -> None:
    found: list[tuple[BudgetExceeded, int]] = []
    unharmed: list[int] = []

    def modest() -> None:
        with memory_scope("modest", meter="native", budget=BUDGET):
            unharmed.extend(len([{"a": number} for number in range(500)]) for _ in range(200))

    threads = [threading.Thread(target=stopped, args=(list_of_dicts, found)) for _ in range(4)]
    threads.append(threading.Thread(target=modest))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert all(peak <= BUDGET * 1.1 + MIB for _, peak in found)
    assert unharmed == [500] * 200


@pytest.mark.parametrize("runaway", RUNAWAYS, ids=lambda runaway: runaway.__name__)
async def test_runaway_step_is_stopped_and_the_loop_goes_on(runaway: Callable[[], object]) -> None:
    ticks: list[float] = []

    peaks: list[int] = []

    @memory_budget(BUDGET, meter="native")
    async def import_day() -> None:
        await asyncio.sleep(0)
        try:
            runaway()
        finally:
            owner = active_owner()
            assert owner is not None
            peaks.append(owner.peak_bytes)

    async def tick() -> None:
        for _ in range(5):
            ticks.append(time.monotonic())
            await asyncio.sleep(0)

    results = await asyncio.gather(import_day(), tick(), return_exceptions=True)

    assert isinstance(results[0], BudgetExceeded)
    assert results[0].used_bytes > BUDGET
    assert peaks[0] <= BUDGET * 1.1 + MIB
    assert len(ticks) == 5


def test_worker_thread_is_stopped_for_the_budget_of_its_task() -> None:
    @memory_budget(BUDGET, meter="native")
    async def import_day() -> None:
        await asyncio.to_thread(bind_to_current(list_of_dicts))

    with pytest.raises(BudgetExceeded) as caught:
        asyncio.run(import_day())

    assert "import_day" in caught.value.scope


def test_innermost_owner_over_budget_is_stopped_alone() -> None:
    with memory_scope("outer", meter="native", budget=10 * BUDGET) as outer:
        with pytest.raises(BudgetExceeded) as caught, memory_scope("inner", meter="native", budget=BUDGET):
            list_of_dicts()
        kept = bytearray(MIB)

    assert caught.value.scope == "inner"
    assert outer.usage.exact
    assert len(kept) == MIB


def test_outer_budget_includes_inner_owners() -> None:
    outer = memory_scope("outer", meter="native", budget=BUDGET)

    with pytest.raises(BudgetExceeded) as caught, outer, memory_scope("inner", meter="native"):
        list_of_dicts()

    assert caught.value.scope == "outer"


def test_handler_of_the_error_has_grace_and_is_stopped_beyond() -> None:
    told: list[BudgetExceeded] = []
    kept: list[object] = []

    def stubborn() -> None:
        for _ in range(1000):
            try:
                kept.extend(bytearray(1000) for _ in range(1000))
            except BudgetExceeded as error:  # `except Exception` would have caught it, too
                told.append(error)

    with pytest.raises(BudgetExceeded) as raised, memory_scope("stubborn", meter="native", budget=BUDGET):
        stubborn()

    (first,) = told
    assert first.used_bytes == pytest.approx(BUDGET, abs=MIB)
    assert raised.value.used_bytes - first.used_bytes == pytest.approx(BUDGET / 10, abs=MIB / 2)


class Swallower:
    """Allocates much in its finaliser, where an exception would be lost."""

    begun = 0
    ended = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Swallower.begun += 1
        kept = [str(number) * 10 for number in range(100)]
        Swallower.ended += len(kept) == 100


def make_and_drop(kept: list[object], *, collected: bool) -> None:
    for _ in range(ENOUGH):
        swallower = Swallower()
        if not collected:
            del swallower.itself
        kept.append([bytearray(5000)])


@pytest.mark.parametrize("collected", [False, True])
def test_no_finaliser_and_no_collector_callback_is_stopped(collected: bool) -> None:
    Swallower.begun = Swallower.ended = 0
    kept: list[object] = []
    callbacks: list[int] = []

    def callback(phase: str, _about: dict[str, int]) -> None:
        callbacks.append(sum(1 for _ in range(50)))
        kept.append(bytearray(1000))

    gc.callbacks.append(callback)
    try:
        with pytest.raises(BudgetExceeded), memory_scope("finalises", meter="native", budget=BUDGET):
            make_and_drop(kept, collected=collected)
    finally:
        gc.callbacks.remove(callback)
    gc.collect()

    assert Swallower.ended == Swallower.begun > 100
    assert set(callbacks) == {50}


def test_collector_callbacks_exist_only_under_a_budget() -> None:
    before = list(gc.callbacks)

    with memory_scope("bounded", meter="native", budget=BUDGET):
        during = list(gc.callbacks)

    assert len(during) == len(before) + 2
    assert gc.callbacks == before


def test_exceeded_budget_is_emitted_once() -> None:
    overruns: list[BudgetOverrun] = []
    with subscribe(lambda event: overruns.append(event) if isinstance(event, BudgetOverrun) else None):
        stopped(list_of_dicts, [])

    assert [(event.name, event.in_flight) for event in overruns] == [("runaway", True)]


def test_peak_at_the_end_of_a_scope_is_checked_once() -> None:
    with pytest.raises(BudgetExceeded) as caught, memory_scope("late", meter="native", budget=BUDGET) as late:
        # One allocation within the grace, and no bytecode after it but the end of the block.
        bytearray(BUDGET + MIB)

    assert BUDGET + MIB <= caught.value.used_bytes <= late.usage.peak_bytes < BUDGET + 2 * MIB


def test_freed_bytes_count_no_more_against_the_budget() -> None:
    with memory_scope("tidy", meter="native", budget=BUDGET) as tidy:
        for _ in range(50):
            kept = [bytearray(1000) for _ in range(10_000)]
            del kept

    assert tidy.usage.allocated_bytes is not None
    assert tidy.usage.allocated_bytes > 10 * BUDGET


@pytest.mark.parametrize("on_exceed", ["warn", lambda error: None])
def test_owner_under_warn_is_not_stopped(on_exceed: object) -> None:
    with memory_scope("noted", meter="native", budget=MIB, on_exceed=on_exceed) as noted:  # type: ignore[arg-type]
        kept = [bytearray(1000) for _ in range(5000)]

    assert noted.usage.peak_bytes > 4 * MIB
    assert len(kept) == 5000


def test_other_task_of_the_thread_is_never_stopped() -> None:
    async def main() -> list[object]:
        @memory_budget(BUDGET, meter="native")
        async def greedy() -> None:
            kept = []
            for _ in range(100):
                kept.append(bytearray(MIB))
                await asyncio.sleep(0)

        async def bystander() -> str:
            for _ in range(200):
                [str(number) for number in range(500)]
                await asyncio.sleep(0)
            return "unharmed"

        return await asyncio.gather(greedy(), bystander(), return_exceptions=True)

    stopped_one, unharmed = asyncio.run(main())

    assert isinstance(stopped_one, BudgetExceeded)
    assert unharmed == "unharmed"
