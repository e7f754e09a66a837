"""`task_scope`: creating tasks, the limit, failures, and what an ended task leaves behind."""

import asyncio
import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
import uvloop

from memtools.errors import ConfigError, MemtoolsError, ScopeClosed
from memtools.scopes import ScopeFull, TaskFailure, memory_scope, task_scope


async def return_later(value: object = None) -> object:
    await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def wait_forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_running", 0),
        ("max_running", True),
        ("max_running", -1),
        ("max_running", 1.5),
        ("max_running", "8"),
        ("on_error", "ignore"),
        ("on_error", None),
        ("on_exit", "leave"),
        ("grace", float("nan")),
        ("grace", -1),
        ("grace", float("inf")),
        ("grace", True),
        ("keep_results", -1),
        ("keep_results", None),
        ("admit", "much"),
        ("admit", object()),
        ("admit", True),
        ("name", ""),
        ("name", 7),
        ("budget", "1 elephant"),
        ("warn", -1),
        ("meter", "scales"),
    ],
)
def test_invalid_argument_raises_config_error_with_its_name(argument: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        task_scope(**{argument: value})

    assert caught.value.name == argument
    assert caught.value.value is value
    assert caught.value.accepted


@pytest.mark.parametrize(
    "settings", [{"max_pending": 1}, {"max_running": 1, "max_pending": -1}, {"admit": 1, "max_pending": 0}]
)
def test_invalid_max_pending_raises_config_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_pending"):
        task_scope(**settings)


async def test_create_task_returns_an_asyncio_task_with_its_name() -> None:
    async with task_scope() as tasks:
        task = tasks.create_task(return_later(7), name="seven")

    assert isinstance(task, asyncio.Task)
    assert (task.get_name(), task.result()) == ("seven", 7)


@pytest.mark.parametrize("spawns", [False, True])
async def test_closed_scope_refuses_and_closes_the_coroutine(spawns: bool) -> None:
    tasks = task_scope(name="import")
    async with tasks:
        pass
    coro = return_later()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScopeClosed, match="import takes no work: it is finished"):
            await tasks.spawn(coro) if spawns else tasks.create_task(coro)
        with pytest.raises(RuntimeError, match="cannot reuse"):
            coro.send(None)
        del coro
        gc.collect()


async def test_scope_that_was_not_entered_refuses_tasks() -> None:
    tasks = task_scope()

    with pytest.raises(ScopeClosed, match="has not been entered"):
        tasks.create_task(return_later())
    with pytest.raises(ScopeClosed, match="has not been entered"):
        tasks.owner  # noqa: B018
    await tasks.shutdown()
    assert tasks.statistics().state == "not entered"


async def test_create_task_with_another_object_raises_type_error() -> None:
    for settings in ({}, {"max_running": 1}, {"meter": "tracemalloc"}, {"max_running": 1, "meter": "tracemalloc"}):
        async with task_scope(**settings) as tasks:
            with pytest.raises(TypeError, match="coroutine was expected"):
                tasks.create_task(7)  # type: ignore[arg-type]

            assert tasks.statistics().running == 0


async def test_task_runs_in_a_copied_context_or_in_the_given_one() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")

    async def read_and_set(value: str) -> str:
        before = variable.get()
        variable.set(value)
        return before

    variable.set("creator")
    given = copy_context()
    given.run(variable.set, "given")
    async with task_scope() as tasks:
        with memory_scope("another owner"):
            own = tasks.create_task(read_and_set("a"))
        other = tasks.create_task(read_and_set("b"), context=given)

    assert (own.result(), other.result()) == ("creator", "given")
    assert given[variable] == "b"
    assert variable.get() == "creator"


async def test_given_context_that_is_running_is_not_changed() -> None:
    running = copy_context()
    async with task_scope() as tasks:
        task = running.run(lambda: tasks.create_task(return_later(7), context=running))

    assert task.result() == 7


async def test_scope_entered_twice_raises_scope_closed() -> None:
    async with task_scope() as tasks:
        with pytest.raises(ScopeClosed, match="already been entered"):
            await tasks.__aenter__()


async def test_max_running_limits_tasks_and_keeps_their_order() -> None:
    started: list[int] = []
    running = highest = 0

    async def work(number: int) -> None:
        nonlocal running, highest
        started.append(number)
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1

    async with task_scope(max_running=3) as tasks:
        for number in range(20):
            tasks.create_task(work(number))
        assert started == []
        assert (tasks.statistics().running, tasks.statistics().waiting) == (3, 17)

    assert started == list(range(20))
    assert highest == 3
    assert tasks.statistics().finished == 20


async def test_spawn_waits_until_the_task_may_start() -> None:
    release = asyncio.Event()
    async with task_scope(max_running=1) as tasks:
        await tasks.spawn(release.wait())  # type: ignore[arg-type]
        second = asyncio.ensure_future(tasks.spawn(return_later(2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        was_waiting = not second.done()
        release.set()
        task = await second

    assert was_waiting
    assert task.result() == 2


async def test_cancelled_spawn_leaves_its_slot_to_the_next_task() -> None:
    started: list[str] = []

    async def note(name: str) -> None:
        started.append(name)

    release = asyncio.Event()
    async with task_scope(max_running=1) as tasks:
        tasks.create_task(release.wait())  # type: ignore[arg-type]
        cancelled = asyncio.ensure_future(tasks.spawn(note("cancelled")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        tasks.create_task(note("next"))
        release.set()

    assert started == ["next"]
    assert tasks.statistics().waiting == 0


async def test_waiting_spawn_raises_when_the_scope_shuts_down() -> None:
    async with task_scope(max_running=1) as tasks:
        tasks.create_task(wait_forever())
        waiting = asyncio.ensure_future(tasks.spawn(return_later()))
        await asyncio.sleep(0)
        await tasks.shutdown()

        with pytest.raises(ScopeClosed):
            await waiting


async def test_task_cancelled_in_the_queue_never_starts() -> None:
    coro = return_later()
    async with task_scope(max_running=1) as tasks:
        release = asyncio.Event()
        tasks.create_task(release.wait())  # type: ignore[arg-type]
        early = tasks.create_task(coro)
        early.cancel()
        late = tasks.create_task(return_later())
        await asyncio.sleep(0)
        late.cancel()
        release.set()

    assert early.cancelled()
    assert late.cancelled()
    assert (tasks.statistics().cancelled, tasks.statistics().waiting, tasks.statistics().running) == (2, 0, 0)
    assert coro.cr_frame is None  # closed


async def test_task_beyond_max_pending_raises_scope_full() -> None:
    async with task_scope(max_running=1, max_pending=2, name="import") as tasks:
        for _ in range(3):
            tasks.create_task(return_later())
        coro = return_later()

        with pytest.raises(ScopeFull, match="import takes no more tasks: 2 are waiting, max_pending=2") as full:
            tasks.create_task(coro)

        assert isinstance(full.value, MemtoolsError)
        assert isinstance(full.value, RuntimeError)
        assert coro.cr_frame is None
    assert tasks.statistics().finished == 3


async def test_failure_cancels_other_tasks_and_raises_a_group() -> None:
    with pytest.raises(ExceptionGroup, match="unhandled errors in import") as raised:  # noqa: PT012  # the block is what raises
        async with task_scope(name="import") as tasks:
            other = tasks.create_task(wait_forever())
            tasks.create_task(fail(ValueError("no")))

    assert [str(error) for error in raised.value.exceptions] == ["no"]
    assert other.cancelled()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_recorded_failure_lets_other_tasks_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async with task_scope(on_error="record", name="import") as tasks:
        other = tasks.create_task(return_later("done"))
        tasks.create_task(fail(ValueError("no")), name="bad")
        tasks.create_task(fail(ValueError("again")), name="bad")

    assert other.result() == "done"
    failures = tasks.errors()
    assert [(failure.name, failure.kind, failure.message) for failure in failures] == [
        ("bad", "ValueError", "no"),
        ("bad", "ValueError", "again"),
    ]
    assert isinstance(failures[0], TaskFailure)
    assert failures[0].at > 0
    assert len(caplog.records) == 1  # the first of a name
    assert caplog.records[0].exc_info is None


async def test_failure_records_are_bounded_and_never_raise() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    async with task_scope(on_error="record") as tasks:
        for number in range(300):
            tasks.create_task(fail(ValueError(number)))
        tasks.create_task(fail(ValueError("x" * 10_000)))
        tasks.create_task(fail(Unprintable()))

    assert len(tasks.errors()) == 256
    assert tasks.errors()[-1].message == "<the message cannot be shown>"
    assert len(tasks.errors()[-2].message) == 501
    assert tasks.statistics().failed == 302


async def test_exception_of_the_block_passes_with_on_error_record() -> None:
    with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
        async with task_scope(on_error="record") as tasks:
            task = tasks.create_task(wait_forever())
            raise KeyError("block")

    assert task.cancelled()


@pytest.mark.parametrize("on_error", ["cancel", "record"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_system_exit_and_keyboard_interrupt_are_raised_bare(on_error: Any, kind: type[BaseException]) -> None:
    seen: list[type[BaseException]] = []

    async def main() -> None:
        try:
            async with task_scope(on_error=on_error) as tasks:
                tasks.create_task(wait_forever())
                tasks.create_task(fail(kind()))
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(kind):
        asyncio.run(main())
    assert seen == [kind]


async def test_keep_results_keeps_the_last_results_only() -> None:
    async with task_scope(keep_results=2) as tasks:
        for number in range(5):
            tasks.create_task(return_later(number))

    assert tasks.results() == (3, 4)


class Big:
    """Counts its live instances: stands for what a frame, a result or an argument holds."""

    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1

    def __del__(self) -> None:
        type(self).alive -= 1


async def fail_big() -> None:
    big = Big()
    await asyncio.sleep(0)
    raise ValueError(id(big))


async def return_big() -> Big:
    await asyncio.sleep(0)
    return Big()


async def frames_alive_after(open_group: Callable[[], Any]) -> int:
    Big.alive = 0
    try:
        async with open_group() as tasks:
            for _ in range(50):
                tasks.create_task(fail_big())
    except* ValueError:
        pass
    await asyncio.sleep(0)
    return Big.alive


@pytest.fixture
def no_collector() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.usefixtures("no_collector")
async def test_failed_tasks_keep_no_frame_alive_unlike_a_task_group() -> None:
    of_scope = await frames_alive_after(task_scope)
    of_limited_scope = await frames_alive_after(lambda: task_scope(max_running=50))
    of_recording_scope = await frames_alive_after(lambda: task_scope(on_error="record"))
    of_task_group = await frames_alive_after(asyncio.TaskGroup)

    assert (of_scope, of_limited_scope, of_recording_scope) == (0, 0, 0)
    if sys.version_info < (3, 12, 8) or sys.version_info[:3] == (3, 13, 0):
        assert of_task_group == 50  # fixed by gh-124958


@pytest.mark.usefixtures("no_collector")
async def test_failed_tasks_with_owners_keep_no_frame_alive() -> None:
    assert await frames_alive_after(lambda: task_scope(meter="tracemalloc")) == 0


@pytest.mark.usefixtures("no_collector")
async def test_open_scope_keeps_no_result_alive() -> None:
    Big.alive = 0
    async with task_scope() as tasks:
        for _ in range(50):
            tasks.create_task(return_big())
        for _ in range(4):
            await asyncio.sleep(0)

        assert tasks.statistics().finished == 50
        assert Big.alive == 0


@pytest.mark.usefixtures("no_collector")
async def test_block_that_raises_or_is_cancelled_keeps_nothing_alive() -> None:
    async def hold() -> None:
        big = Big()
        async with task_scope() as tasks:
            tasks.create_task(wait_forever())
            await asyncio.sleep(0)
            raise KeyError(id(big))

    Big.alive = 0
    for _ in range(5):
        try:
            await hold()
        except* KeyError:
            pass
        held = asyncio.ensure_future(hold())
        await asyncio.sleep(0)
        held.cancel()
        try:  # noqa: SIM105  # as users write it
            await held
        except asyncio.CancelledError:
            pass
        del held
    await asyncio.sleep(0)  # the loop refers to the last callback that it ran

    assert Big.alive == 0


@pytest.mark.usefixtures("no_collector")
async def test_running_task_is_held_by_the_scope() -> None:
    async def wait_on(future: "asyncio.Future[None]") -> None:
        await future

    async with task_scope(on_exit="cancel") as tasks:
        # Only the task refers to the future and only the future to the task: a collection would delete the pair.
        tasks.create_task(wait_on(asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        gc.collect()

        assert tasks.statistics().running == 1


@pytest.mark.usefixtures("no_collector")
async def test_ended_scope_does_not_keep_its_parent_task_alive() -> None:
    kept: list[task_scope] = []

    async def hold() -> None:
        async with task_scope() as tasks:
            kept.append(tasks)

    holder = asyncio.ensure_future(hold())
    await holder
    seen = weakref.ref(holder)
    del holder
    await asyncio.sleep(0)

    assert seen() is None
    assert kept[0].statistics().state == "finished"


async def fail_in_child(tasks: Any) -> None:
    tasks.create_task(fail_soon())


async def fail_soon() -> None:
    await asyncio.sleep(0)
    raise ValueError("child")


async def fail_in_block(_tasks: Any) -> None:
    raise ValueError("block")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("block", "on_error"), [(fail_in_child, "cancel"), (fail_in_block, "cancel"), (fail_in_block, "record")]
)
async def test_failed_scope_does_not_keep_its_parent_task_alive(block: Any, on_error: Any) -> None:
    async def hold() -> None:
        async with task_scope(on_error=on_error) as tasks:
            await block(tasks)

    holder = asyncio.ensure_future(hold())
    await asyncio.wait([holder])
    assert holder.exception() is not None
    seen = weakref.ref(holder)
    del holder
    await asyncio.sleep(0)

    assert seen() is None


async def test_task_name_of_another_type_is_converted_to_text() -> None:
    async with task_scope() as tasks:
        task = tasks.create_task(return_later(), name=7)  # type: ignore[arg-type]

    assert task.get_name() == "7"
    assert tasks.usage_by_name()["7"].finished == 1


async def test_refused_task_does_not_appear_in_the_usage() -> None:
    async with task_scope(max_running=1, max_pending=0) as tasks:
        tasks.create_task(return_later(), name="first")
        with pytest.raises(ScopeFull):
            tasks.create_task(return_later(), name="second")

    assert list(tasks.usage_by_name()) == ["first"]


async def test_repr_shows_state_and_counts_in_one_line() -> None:
    tasks = task_scope(max_running=1, name="import")
    shown = [repr(tasks)]
    async with tasks:
        tasks.create_task(return_later())
        tasks.create_task(return_later())
        shown.append(repr(tasks))
    shown.append(repr(tasks))

    assert shown == [
        "<task_scope 'import' not entered running=0 waiting=0>",
        "<task_scope 'import' open running=1 waiting=1>",
        "<task_scope 'import' finished running=0 waiting=0>",
    ]


@pytest.mark.leaves("descriptor", reason="libuv keeps one pipe for signals in each process")
def test_scope_runs_on_uvloop() -> None:
    async def main() -> tuple[int, int]:
        with pytest.raises(ExceptionGroup):  # noqa: PT012  # the block is what raises
            async with task_scope(max_running=2, grace=0.01) as tasks:
                for number in range(5):
                    await tasks.spawn(return_later(number))
                tasks.create_task(fail(ValueError()))
                await wait_forever()
        return tasks.statistics().finished, tasks.statistics().failed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == (5, 1)
