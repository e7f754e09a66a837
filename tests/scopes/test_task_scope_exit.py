"""`task_scope`: how it ends, cancellation from inside and outside, and abandoned tasks."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from memtools.errors import BudgetExceeded, ScopeClosed
from memtools.events import Event, TaskAbandoned, subscribe
from memtools.scopes import task_scope


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("no")


async def ignore_cancellation(release: asyncio.Event) -> None:
    while not release.is_set():
        try:  # noqa: SIM105  # as users write it
            await release.wait()
        except asyncio.CancelledError:
            pass  # the mistake that abandons a task


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@pytest.fixture
async def release() -> AsyncIterator[asyncio.Event]:
    """Set at the end of the test, so that tasks which ignore their cancellation end, too."""
    event = asyncio.Event()
    yield event
    event.set()
    for _ in range(3):
        await asyncio.sleep(0)


async def test_on_exit_join_waits_and_cancel_does_not() -> None:
    async with task_scope(on_exit="join") as joined:
        joined.create_task(asyncio.sleep(0.01))
    async with task_scope(on_exit="cancel") as cancelled:
        task = cancelled.create_task(wait_forever())

    assert joined.statistics().finished == 1
    assert task.cancelled()
    assert cancelled.statistics().cancelled == 1
    assert cancelling() == 0


async def test_tasks_running_after_the_grace_are_named_and_abandoned(
    release: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    loop = asyncio.get_running_loop()
    with subscribe(events.append):
        started = loop.time()
        async with task_scope(on_exit="cancel", grace=0.05, name="import") as tasks:
            for number in range(3):
                tasks.create_task(ignore_cancellation(release), name=f"stuck {number}")
            tasks.create_task(wait_forever(), name="cooperative")
            await asyncio.sleep(0)
        took = loop.time() - started

    assert 0.05 <= took < 2
    abandoned = [event for event in events if isinstance(event, TaskAbandoned)]
    assert abandoned == [TaskAbandoned("import", f"stuck {number}", 0.05) for number in range(3)]
    warning = next(record.getMessage() for record in caplog.records if "abandons" in record.getMessage())
    assert "import abandons 3 of its tasks" in warning
    assert "stuck 0, stuck 1, stuck 2" in warning
    assert (tasks.statistics().abandoned, tasks.statistics().cancelled) == (3, 1)
    assert tasks.statistics().state == "finished"


async def test_grace_of_zero_lets_cooperative_tasks_end(release: asyncio.Event) -> None:
    async def tidy() -> None:
        try:
            await wait_forever()
        finally:
            await asyncio.sleep(0)

    async with task_scope(on_exit="cancel", grace=0) as tasks:
        for _ in range(10):
            tasks.create_task(tidy())
        tasks.create_task(ignore_cancellation(release))
        await asyncio.sleep(0)

    assert (tasks.statistics().cancelled, tasks.statistics().abandoned) == (10, 1)


async def test_abandoned_task_that_fails_is_reported_to_the_loop(release: asyncio.Event) -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report["exception"]))

    async def fail_late() -> None:
        await ignore_cancellation(release)
        raise ValueError("late")

    async with task_scope(on_exit="cancel", grace=0) as tasks:
        tasks.create_task(fail_late())
        await asyncio.sleep(0)
    release.set()
    for _ in range(4):
        await asyncio.sleep(0)

    assert [str(report) for report in reports] == ["late"]


async def test_repeated_cancellation_does_not_extend_the_deadline(release: asyncio.Event) -> None:
    async def hold() -> None:
        async with task_scope(grace=0.05) as tasks:
            tasks.create_task(ignore_cancellation(release))
            await wait_forever()

    holder = asyncio.ensure_future(hold())
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.01)
    started = loop.time()
    for _ in range(4):
        holder.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await holder

    assert loop.time() - started < 1


async def test_outer_cancellation_passes_and_keeps_the_count() -> None:
    counts: list[int] = []

    async def hold() -> None:
        try:
            async with task_scope() as tasks:
                tasks.create_task(wait_forever())
                await wait_forever()
        finally:
            counts.append(cancelling())

    holder = asyncio.ensure_future(hold())
    await asyncio.sleep(0)
    holder.cancel()

    with pytest.raises(asyncio.CancelledError):
        await holder
    assert counts == [1]


@pytest.mark.parametrize("on_exit", ["join", "cancel"])
async def test_outer_cancellation_during_the_exit_passes(on_exit: str, release: asyncio.Event) -> None:
    async def hold() -> str:
        async with task_scope(on_exit=on_exit, grace=0.05) as tasks:  # type: ignore[arg-type]
            tasks.create_task(ignore_cancellation(release))
            await asyncio.sleep(0)
        return "swallowed"

    holder = asyncio.ensure_future(hold())
    for _ in range(4):
        await asyncio.sleep(0)
    holder.cancel()

    with pytest.raises(asyncio.CancelledError):
        await holder


async def test_timeout_around_the_scope_raises_timeout_error() -> None:
    with pytest.raises(TimeoutError):  # noqa: PT012  # the block is what raises
        async with asyncio.timeout(0.01):
            async with task_scope() as tasks:
                task = tasks.create_task(wait_forever())
                await wait_forever()

    assert task.cancelled()
    assert cancelling() == 0


async def test_outer_cancellation_with_a_failure_is_delivered_later() -> None:
    steps: list[object] = []

    async def hold() -> None:
        try:
            async with task_scope() as tasks:
                tasks.create_task(fail())
                await wait_forever()
        except* ValueError:
            steps.append(cancelling())
        await asyncio.sleep(0)
        steps.append("the cancellation was lost")

    holder = asyncio.ensure_future(hold())
    await asyncio.sleep(0)
    holder.cancel()

    with pytest.raises(asyncio.CancelledError):
        await holder
    assert steps == [1]


async def test_shutdown_cancels_all_tasks_and_can_be_repeated() -> None:
    async with task_scope(name="import") as tasks:
        task = tasks.create_task(wait_forever())

        await tasks.shutdown()
        await tasks.shutdown()

        assert task.cancelled()
        assert tasks.statistics().state == "shutting down"
        with pytest.raises(ScopeClosed, match="import takes no work: it is shutting down"):
            tasks.create_task(wait_forever())
    await tasks.shutdown()
    assert cancelling() == 0


async def test_concurrent_shutdowns_both_wait_for_the_end() -> None:
    async def tidy() -> None:
        try:
            await wait_forever()
        finally:
            await asyncio.sleep(0.01)

    async with task_scope() as tasks:
        task = tasks.create_task(tidy())
        await asyncio.sleep(0)

        await asyncio.gather(tasks.shutdown(), tasks.shutdown())

        assert task.done()


async def test_shutdown_called_by_a_task_cancels_that_task() -> None:
    async with task_scope() as tasks:
        inside = tasks.create_task(tasks.shutdown())
        other = tasks.create_task(wait_forever())

    assert inside.cancelled()
    assert other.cancelled()


async def test_cancel_ends_block_and_tasks_without_an_exception() -> None:
    reached: list[str] = []
    async with task_scope(name="search") as tasks:
        running = tasks.create_task(wait_forever())
        await asyncio.sleep(0)
        tasks.cancel()
        tasks.cancel()
        reached.append("up to the next await")
        await asyncio.sleep(0)
        reached.append("beyond it")

    assert reached == ["up to the next await"]
    assert running.cancelled()
    assert cancelling() == 0
    await asyncio.sleep(0)  # no cancellation is left to be delivered
    with pytest.raises(ScopeClosed):
        tasks.create_task(wait_forever())


async def test_first_result_cancels_the_other_tasks() -> None:
    async def answer(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        answers.append(delay_s)
        tasks.cancel()

    answers: list[float] = []
    async with task_scope() as tasks:
        for delay_s in (0.0, 3600.0, 7200.0):
            tasks.create_task(answer(delay_s))

    assert answers == [0.0]
    assert tasks.statistics().cancelled == 3  # the first one has cancelled itself, too


async def test_cancel_before_the_scope_is_entered_ends_its_block() -> None:
    tasks = task_scope()
    tasks.cancel()
    reached: list[str] = []
    async with tasks:
        reached.append("up to the first await")
        await asyncio.sleep(0)
        reached.append("beyond it")

    assert reached == ["up to the first await"]
    tasks.cancel()  # nothing happens after the end
    await asyncio.sleep(0)


@pytest.mark.parametrize("has_awaited", [False, True])
async def test_failure_of_a_cancelled_block_is_raised(has_awaited: bool) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the block is what raises
        async with task_scope() as tasks:
            tasks.cancel()
            try:
                await asyncio.sleep(0) if has_awaited else None
            finally:
                await fail()

    assert [str(error) for error in caught.value.exceptions] == ["no"]
    assert cancelling() == 0


async def test_outer_cancellation_passes_a_cancelled_scope(release: asyncio.Event) -> None:
    async def hold() -> None:
        async with task_scope() as tasks:
            tasks.create_task(end_slowly())
            await asyncio.sleep(0)
            tasks.cancel()

    async def end_slowly() -> None:
        try:
            await wait_forever()
        finally:
            is_ending.set()
            await release.wait()

    is_ending = asyncio.Event()
    holding = asyncio.create_task(hold())
    await is_ending.wait()
    holding.cancel("by the program")
    release.set()

    with pytest.raises(asyncio.CancelledError, match="by the program"):
        await holding


async def test_cancelled_scope_over_its_budget_says_so() -> None:
    with pytest.raises(BudgetExceeded):  # noqa: PT012  # the block is what raises
        async with task_scope(budget="1 MiB", inexact="raise", meter="tracemalloc") as tasks:
            bytearray(3 << 20)
            tasks.cancel()
            await wait_forever()


async def test_generator_that_is_closed_raises_failures_of_its_tasks() -> None:
    async def numbers() -> AsyncIterator[int]:
        async with task_scope(name="prefetch") as tasks:
            tasks.create_task(fail_after(has_failed))
            yield 1

    async def fail_after(event: asyncio.Event) -> None:
        event.set()
        await fail()

    has_failed = asyncio.Event()
    generator = numbers()
    await anext(generator)
    await has_failed.wait()

    with pytest.raises(BaseExceptionGroup, match="unhandled errors in prefetch") as caught:
        await generator.aclose()  # type: ignore[attr-defined]  # an iterator for the type checker
    assert [type(error) for error in caught.value.exceptions] == [ValueError, GeneratorExit]
    assert cancelling() == 0


async def test_block_closed_by_generator_exit_does_not_wait() -> None:
    async def hold() -> None:
        async with task_scope() as tasks:
            started.append(tasks.create_task(wait_forever()))
            await asyncio.sleep(0)
            await wait_forever()

    started: list[asyncio.Task[None]] = []
    coro = hold()
    coro.send(None)

    coro.close()

    for _ in range(3):
        await asyncio.sleep(0)
    assert started[0].cancelled()


if sys.version_info >= (3, 12):

    @pytest.fixture
    async def eager() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    @pytest.mark.usefixtures("eager")
    async def test_eager_tasks_that_end_at_once_are_counted() -> None:
        async def return_seven() -> int:
            return 7

        async with task_scope(max_running=2, keep_results=1) as tasks:
            for _ in range(5):
                task = tasks.create_task(return_seven())
                assert task.done()

        assert (tasks.statistics().finished, tasks.results()) == (5, (7,))

    @pytest.mark.usefixtures("eager")
    async def test_eager_failure_interrupts_the_block_only() -> None:
        with pytest.raises(ExceptionGroup):
            async with task_scope() as tasks:
                tasks.create_task(fail())
        await asyncio.sleep(0)  # the scope's own cancellation must not be delivered here

        assert cancelling() == 0

    @pytest.mark.usefixtures("eager")
    async def test_eager_failure_lets_the_block_go_on_to_its_next_await() -> None:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the block is what raises
            async with task_scope() as tasks:
                tasks.create_task(fail())
                tasks.create_task(fail())

        assert [str(error) for error in caught.value.exceptions] == ["no", "no"]

    @pytest.mark.usefixtures("eager")
    async def test_eager_task_that_starts_a_failure_is_cancelled() -> None:
        async def start_a_failure() -> None:
            tasks.create_task(fail())
            await wait_forever()

        with pytest.raises(ExceptionGroup):  # noqa: PT012  # the block is what raises
            async with task_scope() as tasks:
                task = tasks.create_task(start_a_failure())
                await wait_forever()

        assert task.cancelled()

    @pytest.mark.usefixtures("eager")
    async def test_max_running_holds_for_nested_eager_tasks() -> None:
        running = highest = 0

        async def work(depth: int) -> None:
            nonlocal running, highest
            running += 1
            highest = max(highest, running)
            if depth:
                tasks.create_task(work(depth - 1))
            await asyncio.sleep(0)
            running -= 1

        async with task_scope(max_running=2) as tasks:
            tasks.create_task(work(6))

        assert highest == 2
        assert tasks.statistics().finished == 7


async def test_failure_after_the_parent_task_ended_goes_to_the_loop() -> None:
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report))
    tasks = task_scope(name="import")
    await asyncio.ensure_future(tasks.__aenter__())

    tasks.create_task(fail())
    await tasks.__aexit__(None, None, None)

    assert [str(report["exception"]) for report in reports] == ["no"]
    assert "import" in str(reports[0]["message"])


def test_system_exit_of_the_block_passes_bare() -> None:
    ended: list[bool] = []

    async def main() -> None:
        async with task_scope() as tasks:
            task = tasks.create_task(wait_forever())
            task.add_done_callback(lambda task: ended.append(task.cancelled()))
            await asyncio.sleep(0)
            raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())
    assert ended == [True]


async def test_task_cancelled_by_the_program_is_not_a_failure() -> None:
    async with task_scope() as tasks:
        other = tasks.create_task(asyncio.sleep(0, 7))
        tasks.create_task(wait_forever()).cancel()

    assert other.result() == 7
    assert (tasks.statistics().cancelled, tasks.statistics().failed) == (1, 0)


async def test_thousands_of_waiting_tasks_are_cancelled_quickly() -> None:
    loop = asyncio.get_running_loop()
    async with task_scope(max_running=1) as tasks:
        for _ in range(5_000):
            tasks.create_task(wait_forever())
        await asyncio.sleep(0)
        started = loop.time()

        await tasks.shutdown()

        assert loop.time() - started < 5  # a queue that is searched for each task takes minutes
    assert tasks.statistics().cancelled == 5_000


async def test_failure_after_the_block_was_closed_goes_to_the_loop() -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report["exception"]))

    async def fail_on_cancel() -> None:
        try:
            await wait_forever()
        finally:
            await fail()

    async def hold() -> None:
        async with task_scope() as tasks:
            tasks.create_task(fail_on_cancel())
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    coro = hold()
    coro.send(None)
    await asyncio.sleep(0)
    coro.close()
    for _ in range(3):
        await asyncio.sleep(0)

    assert [str(report) for report in reports] == ["no"]


async def test_keyboard_interrupt_of_the_block_keeps_the_count() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the block is what raises
        async with task_scope() as tasks:
            tasks.create_task(fail())
            try:
                await wait_forever()
            finally:
                raise KeyboardInterrupt

    assert cancelling() == 0
