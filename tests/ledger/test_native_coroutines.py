"""One contract for tracked coroutines in C and in Python, and for owners on the fast path and on the slow one."""

import asyncio
import gc
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from memtools.errors import BudgetExceeded
from memtools.events import Event, ScopeEnded, subscribe
from memtools.ledger import (
    Budget,
    _context,
    active_owner,
    choose_meter,
    forget_accounts,
    native_reason,
    open_owners,
    statistics,
)
from memtools.ledger._context import current_tracker, per_thread
from memtools.ledger._coroutines import PythonTrackedCoroutine, TrackedCoroutine
from memtools.ledger._ledger import close_owner, open_owner

# Any: what coroutines send and return, and the options of a tracked coroutine, differ from test to test.
METERS = ["rss", "tracemalloc", *([] if native_reason() else ["native"])]
MB = 1_000_000


def _over_python() -> Any:
    body = {name: value for name, value in vars(TrackedCoroutine).items() if name != "__orig_bases__"}
    return type("OverPython", (PythonTrackedCoroutine, Coroutine), body)


@pytest.fixture(params=["as built", "in Python"])
def coroutine_class(request: pytest.FixtureRequest) -> Any:
    """The class under test."""
    return TrackedCoroutine if request.param == "as built" else _over_python()


@pytest.fixture(params=METERS)
def meter(request: pytest.FixtureRequest) -> Any:
    chosen = choose_meter(request.param)
    chosen.acquire()
    yield chosen
    chosen.release()


@types.coroutine
def pause(value: Any = None) -> Generator[Any, Any, Any]:
    return (yield value)


def finish(steps: Any) -> Any:
    """Run a coroutine by `send` alone, and return its result."""
    while True:
        try:
            steps.send(None)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("result", [None, 7, (1, 2), ValueError("a result"), StopIteration(3)])
def test_return_values_pass_unchanged(coroutine_class: Any, meter: Any, result: Any) -> None:
    async def returns() -> Any:
        await pause()
        return result

    async def awaits() -> Any:
        return await coroutine_class(returns(), meter, name="awaited")

    assert finish(coroutine_class(returns(), meter, name="sent")) is result
    assert finish(awaits()) is result


def test_sent_and_yielded_values_pass_both_ways(coroutine_class: Any, meter: Any) -> None:
    async def talks() -> list[Any]:
        return [await pause("one"), await pause("two")]

    steps = coroutine_class(talks(), meter, name="talks")

    assert [steps.send(None), steps.send("first")] == ["one", "two"]
    with pytest.raises(StopIteration) as end:
        steps.send("second")
    assert end.value.value == ["first", "second"]
    assert steps.steps == 3


def test_on_end_gets_the_owner_and_the_exception(coroutine_class: Any, meter: Any) -> None:
    told: list[Any] = []

    async def ends(error: BaseException | None) -> None:
        await pause()
        if error is not None:
            raise error

    failure = LookupError("mine")
    for error in (None, failure):
        steps = coroutine_class(
            ends(error), meter, name="ends", on_end=lambda owner, end: told.append((owner.is_active, end))
        )
        if error is None:
            finish(steps)
        else:
            with pytest.raises(LookupError):
                finish(steps)

    assert told == [(False, None), (False, failure)]


def test_exception_of_on_end_replaces_the_result(coroutine_class: Any, meter: Any) -> None:
    async def fails() -> None:
        raise LookupError("mine")

    def refuses(_owner: Any, _error: Any) -> None:
        raise RuntimeError("raised by on_end")

    with pytest.raises(RuntimeError, match="raised by on_end") as caught:
        finish(coroutine_class(fails(), meter, name="fails", on_end=refuses))

    assert isinstance(caught.value.__context__, LookupError)
    assert per_thread.slot.owner is None
    assert per_thread.slot.tracker is None


@pytest.mark.parametrize("thrown", [(KeyError("k"),), (KeyError,), (KeyError, KeyError("k"), None)])
@pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature:DeprecationWarning")
def test_thrown_exceptions_reach_the_coroutine(coroutine_class: Any, meter: Any, thrown: tuple[Any, ...]) -> None:
    async def catches() -> str:
        try:
            await pause()
        except KeyError:
            await pause("caught")
        return "done"

    steps = coroutine_class(catches(), meter, name="catches")
    steps.send(None)

    assert steps.throw(*thrown) == "caught"
    assert finish(steps) == "done"


def test_failed_frame_is_not_kept_alive(coroutine_class: Any, meter: Any) -> None:
    class Held:
        pass

    seen: list[weakref.ref[Held]] = []

    async def fails() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        await pause()
        raise LookupError

    gc.disable()
    try:
        for way in ("send", "throw"):
            steps = coroutine_class(fails(), meter, name="fails")
            steps.send(None)
            with pytest.raises(LookupError):
                steps.send(None) if way == "send" else steps.throw(LookupError())
            del steps
        assert [held() for held in seen] == [None, None]
    finally:
        gc.enable()


def test_coroutine_dropped_in_a_cycle_is_closed_by_the_collector(coroutine_class: Any, meter: Any) -> None:
    ended: list[str] = []

    async def holds(cycle: list[Any]) -> None:
        try:
            await pause()
        finally:
            ended.append("cleaned up" if cycle else "")

    cycle: list[Any] = []
    steps = coroutine_class(holds(cycle), meter, name="holds")
    cycle.append(steps)
    alive = weakref.ref(steps)
    steps.send(None)
    del steps, cycle

    gc.collect()

    assert ended == ["cleaned up"]
    assert alive() is None
    assert not [owner for owner in open_owners() if owner.name == "holds"]


def test_names_are_the_coroutines_until_set(coroutine_class: Any, meter: Any) -> None:
    async def mine() -> None:
        await pause()

    class Nameless:
        def send(self, *_values: Any) -> None:
            raise StopIteration

        throw = send

        def close(self) -> None:
            pass

    steps, nameless = coroutine_class(mine(), meter), coroutine_class(Nameless(), meter)

    assert (steps.__name__, steps.__qualname__.rpartition(".")[2]) == ("mine", "mine")
    assert nameless.__name__ == nameless.__qualname__ == Nameless.__qualname__
    steps.__name__ = steps.__qualname__ = "other"
    assert (steps.__name__, steps.__qualname__) == ("other", "other")
    assert steps.cr_code is mine.__code__
    steps.close()
    nameless.close()


def test_any_object_with_coroutine_methods_can_be_tracked(coroutine_class: Any, meter: Any) -> None:
    class ByHand:
        left = 2

        def send(self, value: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise StopIteration(value)
            return self.left

        def throw(self, *error: Any) -> Any:
            raise StopIteration("thrown")

        def close(self) -> None:
            pass

    steps = coroutine_class(ByHand(), meter, name="by hand")

    assert [steps.send(None), steps.send(None)] == [1, 0]
    with pytest.raises(StopIteration, match="thrown"):
        steps.throw(KeyError())


async def test_task_over_budget_is_stopped_at_its_next_step(coroutine_class: Any) -> None:
    store: list[bytearray] = []

    async def grows() -> None:
        for _ in range(50):
            store.append(bytearray(MB))
            await asyncio.sleep(0)

    owners: list[Any] = []
    budget = Budget(5 * MB)
    steps = coroutine_class(
        grows(), choose_meter("tracemalloc"), name="grows", budget=budget, on_end=lambda *end: owners.extend(end)
    )
    with pytest.raises(BudgetExceeded):
        await asyncio.ensure_future(steps)

    assert len(store) <= 7
    assert owners[0].exceeded_reported
    assert steps.owner is None


async def test_meters_alternate_within_a_task_and_between_tasks(coroutine_class: Any) -> None:
    store: list[bytearray] = []

    async def grows(size: int) -> None:
        for _ in range(5):
            store.append(bytearray(size))
            await asyncio.sleep(0)

    async def both(size: int) -> None:
        await coroutine_class(grows(size), choose_meter(METERS[-1]), name="inner")
        await grows(size)

    retained: list[int] = []
    options: Any = {
        "name": "outer",
        "kind": "task",
        "on_end": lambda owner, _: retained.append(owner.usage.retained_bytes),
    }
    await asyncio.gather(
        *(coroutine_class(both(size), choose_meter("tracemalloc"), **options) for size in (MB, 3 * MB))
    )

    assert max(retained) >= 14 * MB
    assert active_owner() is None
    assert current_tracker() is None


def test_steps_may_run_in_different_threads(coroutine_class: Any, meter: Any) -> None:
    async def work() -> int:
        for _ in range(3):
            await pause()
        return threading.get_ident()

    steps = coroutine_class(work(), meter, name="wanders")
    for _ in range(3):
        thread = threading.Thread(target=steps.send, args=(None,))
        thread.start()
        thread.join()

    assert finish(steps) == threading.get_ident()
    assert per_thread.slot.owner is None


def test_thousands_of_tracked_coroutines_leave_nothing(coroutine_class: Any, meter: Any) -> None:
    async def work(fails: bool) -> None:
        await pause()
        if fails:
            raise LookupError

    def some(number: int) -> None:
        for turn in range(number):
            steps = coroutine_class(work(turn % 2 == 1), meter, name="work", on_end=lambda owner, error: None)
            with suppress(LookupError):
                finish(steps)
        gc.collect()

    some(300)
    before = sys.getallocatedblocks()
    some(3_000)

    # A leak of one object per coroutine would be 3,000.
    assert sys.getallocatedblocks() - before < 300


def test_finished_coroutine_keeps_no_references(coroutine_class: Any, meter: Any) -> None:
    owners: list[weakref.ref[Any]] = []

    def keep(owner: Any, _error: BaseException | None) -> None:
        owners.append(weakref.ref(owner))

    async def work() -> None:
        await pause()

    steps = coroutine_class(work(), meter, name="work", on_end=keep)
    steps.send(None)
    assert steps.owner is not None
    finish(steps)

    assert (steps.owner, steps.task, steps.on_end) == (None, None, None)
    assert owners[0]() is None


# Calls that nest under the tracker of their task.


class _Ends:
    """The arguments that `on_end` was called with."""

    def __init__(self) -> None:
        self.owners: list[Any] = []
        self.errors: list[BaseException | None] = []

    def __call__(self, owner: Any, error: BaseException | None) -> None:
        self.owners.append(owner)
        self.errors.append(error)


def test_nested_call_opens_its_owner_under_the_tracker(coroutine_class: Any, meter: Any) -> None:
    ends = _Ends()
    seen: list[Any] = []

    async def work(number: int) -> int:
        seen.append((active_owner().name, current_tracker()))  # type: ignore[union-attr]  # there is one
        await pause()
        await pause()
        seen.append((active_owner().name, current_tracker()))  # type: ignore[union-attr]  # there is one
        return number

    async def outer() -> list[int]:
        # The second takes the fast path.
        return [
            await coroutine_class(work(n), meter, name="nested", kind="call", nest_if_tracked=True, on_end=ends)
            for n in range(2)
        ]

    above = coroutine_class(outer(), meter, name="outer")
    assert finish(above) == [0, 1]

    assert seen == [("nested", above)] * 4
    assert [owner.name for owner in ends.owners] == ["nested"] * 2
    assert [owner.usage.steps for owner in ends.owners] == [3, 3]
    assert [owner.is_active for owner in ends.owners] == [False] * 2
    assert ends.errors == [None, None]
    assert above.steps == 5
    assert active_owner() is None


def test_nested_call_without_a_tracker_tracks_itself(coroutine_class: Any) -> None:
    ends = _Ends()

    async def work() -> Any:
        await pause()
        return current_tracker()

    for name in (name for name in METERS if name != "rss"):
        made = coroutine_class(work(), choose_meter(name), name="alone", nest_if_tracked=True, on_end=ends)
        assert finish(made) is made
        assert ends.owners[-1].usage.steps == 2
        assert ends.owners[-1].usage.exact
    # A meter that counts the whole process needs no tracker.
    assert finish(coroutine_class(work(), choose_meter("rss"), name="alone", nest_if_tracked=True, on_end=ends)) is None
    assert ends.owners[-1].name == "alone"
    assert not ends.owners[-1].is_active


@pytest.mark.parametrize("error", [LookupError("failed"), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
def test_end_of_a_nested_call_is_reported_and_passes(coroutine_class: Any, meter: Any, error: BaseException) -> None:
    ends = _Ends()

    async def work(*, raises: bool) -> None:
        await pause()
        if raises:
            raise error

    async def outer(*, raises: bool) -> None:
        await coroutine_class(work(raises=raises), meter, name="nested", nest_if_tracked=True, on_end=ends)

    with pytest.raises(type(error)) as caught:
        finish(coroutine_class(outer(raises=True), meter, name="outer"))
    thrown = coroutine_class(outer(raises=False), meter, name="outer")
    thrown.send(None)
    with pytest.raises(type(error)):
        thrown.throw(error)

    assert caught.value is error
    assert ends.errors == [error, error]
    assert [owner.is_active for owner in ends.owners] == [False, False]
    assert active_owner() is None


def test_nested_call_closed_with_its_task_is_counted_once(coroutine_class: Any, meter: Any) -> None:
    ends = _Ends()
    closed: list[str] = []

    async def work() -> None:
        try:
            await pause()
        finally:
            closed.append(active_owner().name)  # type: ignore[union-attr]  # there is one

    async def outer() -> None:
        await coroutine_class(work(), meter, name="nested", nest_if_tracked=True, on_end=ends)

    above = coroutine_class(outer(), meter, name="outer")
    above.send(None)
    above.close()
    above.close()
    dropped = coroutine_class(outer(), meter, name="outer")
    dropped.send(None)
    del dropped

    assert closed == ["nested"] * 2
    assert ends.errors == [None, None]
    assert [owner.is_active for owner in ends.owners] == [False, False]


def test_nested_call_ended_before_its_start_opens_no_owner(coroutine_class: Any, meter: Any) -> None:
    ends = _Ends()

    async def work() -> None:
        raise AssertionError("must not run")

    with pytest.raises(LookupError):
        coroutine_class(work(), meter, name="nested", nest_if_tracked=True, on_end=ends).throw(LookupError())
    coroutine_class(work(), meter, name="nested", nest_if_tracked=True, on_end=ends).close()

    assert ends.owners == []
    assert open_owners() == ()


def test_exception_of_on_end_replaces_a_nested_result(coroutine_class: Any, meter: Any) -> None:
    def refuses(_owner: Any, _error: BaseException | None) -> None:
        raise BudgetExceeded("nested", 2, 1)

    async def work() -> None:
        await pause()

    async def outer() -> str:
        with pytest.raises(BudgetExceeded):
            await coroutine_class(work(), meter, name="nested", nest_if_tracked=True, on_end=refuses)
        return "went on"

    assert finish(coroutine_class(outer(), meter, name="outer")) == "went on"
    assert active_owner() is None


def test_copies_have_the_options_and_names_of_the_original(coroutine_class: Any, meter: Any) -> None:
    ends = _Ends()

    async def work() -> str:
        await pause()
        return active_owner().name  # type: ignore[union-attr]  # there is one

    example = coroutine_class(None, meter, name="made", kind="call", on_end=ends, nest_if_tracked=True)
    plain = example.copy_for(work())
    example.__name__, example.__qualname__ = "shown", "shown.as"
    named = example.copy_for(work())

    assert (plain.__qualname__, named.__name__, named.__qualname__) == (work.__qualname__, "shown", "shown.as")
    assert (finish(plain), finish(named)) == ("made", "made")
    assert [owner.kind for owner in ends.owners] == ["call", "call"]
    with pytest.raises(AttributeError, match="send"):
        example.copy_for(42)


def test_tracked_coroutine_passes_for_its_coroutine(coroutine_class: Any, meter: Any) -> None:
    async def work() -> None: ...

    made = coroutine_class(work(), meter, name="work")
    made.close()

    assert inspect.iscoroutine(made)
    assert inspect.getcoroutinestate(made) == inspect.CORO_CLOSED
    assert isinstance(made, Coroutine)


# The implementation is chosen once, at import: `MEMTOOLS_NATIVE=0` may have been set then.
_IN_PYTHON = any(kind.__name__ == "PythonTrackedCoroutine" for kind in TrackedCoroutine.__mro__)


@pytest.mark.skipif(_IN_PYTHON, reason="about the steps in C")
def test_uninitialised_object_raises_and_does_not_crash() -> None:
    steps: Any = TrackedCoroutine.__new__(TrackedCoroutine)

    with pytest.raises(RuntimeError, match="no coroutine"):
        steps.send(None)
    with pytest.raises(RuntimeError, match="no coroutine"):
        steps.throw(KeyError())


native = pytest.mark.skipif(_IN_PYTHON or bool(native_reason()), reason="only the native meter has a fast path, in C")


@pytest.fixture
def empty_accounts() -> Any:
    forget_accounts()
    yield
    forget_accounts()


@native
def test_fast_path_and_slow_path_write_the_same_accounts(empty_accounts: None) -> None:
    meter = choose_meter("native")
    store: list[bytearray] = []

    def one(name: str, *, stacked: bool) -> Any:
        # A stacked owner takes the slow path.
        owner = open_owner(name, "call", meter=meter, is_stacked=stacked)
        store.append(bytearray(MB))
        del store[:]
        store.append(bytearray(2000))
        close_owner(owner)
        return owner.usage

    usages = {stacked: [one(f"stacked {stacked}", stacked=stacked) for _ in range(40)] for stacked in (False, True)}

    fast, slow = usages[False][-1], usages[True][-1]
    assert (fast.peak_bytes, fast.retained_bytes) == pytest.approx((slow.peak_bytes, slow.retained_bytes), abs=4096)
    assert (fast.exact, fast.meter, fast.steps) == (slow.exact, slow.meter, slow.steps) == (True, "native", 0)
    entries = {entry.name: entry for entry in statistics().accounts}
    one_way, other_way = entries["stacked False"], entries["stacked True"]
    assert (one_way.started, one_way.active, one_way.failed) == (other_way.started, other_way.active, other_way.failed)
    assert one_way.started == 40
    assert one_way.mean_peak_bytes == pytest.approx(other_way.mean_peak_bytes, abs=4096)
    assert [calls for calls, _ in one_way.live_at_checkpoints] == [calls for calls, _ in other_way.live_at_checkpoints]


@native
def test_recursive_calls_on_both_paths_write_the_same_accounts(empty_accounts: None) -> None:
    from memtools.ledger import _native

    meter = choose_meter("native")
    store: list[bytearray] = []

    def calls_itself(depth: int) -> None:
        owner = open_owner("calls itself", "call", meter=meter)
        store.append(bytearray(10_000))
        if depth:
            between = open_owner("between", "call", meter=meter)
            calls_itself(depth - 1)
            close_owner(between)
        close_owner(owner)

    def accounts_of(is_disabled: bool) -> Any:
        forget_accounts()
        store.clear()
        _native.disable_fast_path(is_disabled)
        try:
            for _ in range(20):
                calls_itself(4)
        finally:
            _native.disable_fast_path(False)
        (entry,) = statistics().accounts
        (below,) = entry.children
        return entry, below

    for fast, slow in zip(accounts_of(False), accounts_of(True), strict=True):
        assert (fast.name, fast.started, fast.active) == (slow.name, slow.started, 0)
        assert fast.retained_bytes == pytest.approx(slow.retained_bytes, abs=50_000)
        assert fast.peak_bytes == pytest.approx(slow.peak_bytes, abs=10_000)
        assert fast.live_bytes == pytest.approx(slow.live_bytes, abs=50_000)
        assert [calls for calls, _ in fast.live_at_checkpoints] == [calls for calls, _ in slow.live_at_checkpoints]
        # The outer call's figures already include a recursive one.
        assert 20 * 39_000 < fast.retained_bytes < 20 * 55_000

    outer = open_owner("calls itself", "call", meter=meter)
    inner = _native.open_fast(meter, "call", "calls itself", True, None)
    assert inner is not None
    assert (inner.account, inner.is_recursive) == (outer.account, True)
    close_owner(inner)
    close_owner(outer)


@native
def test_collections_do_not_visit_finished_coroutines(empty_accounts: None) -> None:
    async def work() -> None:
        await pause()

    for _ in range(3):
        steps = TrackedCoroutine(work(), choose_meter("native"), name="work")
        steps.send(None)
        assert gc.is_tracked(steps)
        finish(steps)

    assert not gc.is_tracked(steps)


@native
def test_stacked_call_takes_the_slow_path(empty_accounts: None) -> None:
    meter = choose_meter("native")
    for _ in range(3):
        outer = open_owner("stacked", "call", meter=meter, is_stacked=True)
        inner = open_owner("stacked", "call", meter=meter)
        assert not inner.is_counted
        close_owner(inner)
        close_owner(outer)

    (entry,) = statistics().accounts
    assert (entry.started, entry.active, entry.children) == (3, 0, ())


class _Named:
    """The task of another event loop."""

    def __init__(self, name: object) -> None:
        self._name = name

    def get_name(self) -> Any:
        return self._name


@pytest.mark.parametrize(
    ("of_task", "expected"),
    [
        (_Named("download"), "download"),
        (_Named("Task-"), "Task-"),
        (_Named("Task-7b"), "Task-7b"),
        (_Named("task-7"), "task-7"),
        (_Named("Task-٣"), "Task-٣"),
        (_Named("None given"), "None given"),
        (_Named("Task-1234567890"), "work"),
        (_Named("None"), "work"),
        (_Named(""), "work"),
        (_Named(12), "12"),
        (object(), "work"),
        (None, "work"),
    ],
    ids=repr,
)
def test_unnamed_owner_takes_the_name_of_task_or_coroutine(
    coroutine_class: Any, meter: Any, empty_accounts: None, monkeypatch: pytest.MonkeyPatch, of_task: Any, expected: str
) -> None:
    async def work() -> None:
        names.append(active_owner().name)  # type: ignore[union-attr]  # there is one

    work.__qualname__ = "work"
    names: list[str] = []
    loop = object()
    monkeypatch.setattr(asyncio, "_get_running_loop", lambda: loop)
    monkeypatch.setattr(asyncio, "current_task", {loop: of_task}.get)
    with _tasks_looked_up_anew():
        for _ in range(3):  # the second takes the fast path
            finish(coroutine_class(work(), meter, name=""))

    assert names == [expected] * 3


@contextmanager
def _tasks_looked_up_anew() -> Iterator[None]:
    known = _context._asyncio
    running_loop, known.running_loop = known.running_loop, None
    current_task = known.current_task
    _context.current_task()
    yield
    known.running_loop, known.current_task = running_loop, current_task
    if running_loop is None:
        _context.current_task()
    elif _context._native is not None:
        _context._native.set_loop_getters(running_loop, current_task)


@native
def test_fast_path_owners_are_listed_and_reported(empty_accounts: None) -> None:
    meter = choose_meter("native")
    received: list[Event] = []
    outer = open_owner("outer", "scope", meter=meter)
    for _ in range(2):  # the second takes the fast path
        inner = open_owner("inner", "call", meter=meter)
        assert inner in open_owners()
        assert inner.parent is outer
        assert active_owner() is inner
        block = bytearray(MB)
        with subscribe(received.append):
            close_owner(inner, failed=True)
        del block
    close_owner(outer)

    told = [event for event in received if isinstance(event, ScopeEnded)]
    assert [(event.name, event.path, event.failed) for event in told] == [("inner", ("outer", "inner"), True)] * 2
    assert outer.largest_children[0][0] == "inner"
    assert outer.largest_children[0][1] >= MB
    assert active_owner() is None
    assert inner not in open_owners()


@native
def test_fast_path_owner_closed_by_several_threads_counts_once(empty_accounts: None) -> None:
    meter = choose_meter("native")
    close_owner(open_owner("once", "call", meter=meter))
    owner = open_owner("once", "call", meter=meter)
    threads = [threading.Thread(target=close_owner, args=(owner,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = owner.usage
    close_owner(owner)

    entry = statistics().accounts[0]
    assert (entry.started, entry.active) == (2, 0)
    assert owner.usage == first
    assert first is not None


@native
def test_fast_path_owners_leave_no_counter_and_no_object(empty_accounts: None) -> None:
    from memtools.ledger import _native

    meter = choose_meter("native")

    def some(number: int) -> None:
        for _ in range(number):
            close_owner(open_owner("many", "call", meter=meter))

    some(500)
    gc.collect()
    before, numbers = sys.getallocatedblocks(), _native.counters_in_use()
    some(5_000)
    gc.collect()

    assert sys.getallocatedblocks() - before < 300
    # From 3.14 on a few ints stay in the interpreter's free list, charged to the owners that allocated their memory.
    assert _native.counters_in_use() <= numbers + (10 if sys.version_info >= (3, 14) else 0)
