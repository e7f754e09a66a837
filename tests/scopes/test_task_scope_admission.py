"""`task_scope(admit=...)`: tasks wait for scripted admissions and scripted sizes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from memtools.errors import ConfigError
from memtools.scopes import Admission, task_scope
from memtools.scopes._admission import MemoryLimitAdmission, parse_admission


class ManualAdmission:
    """Admits once `open` is set, and counts the tasks."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.admitted = 0
        self.requests = 0

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        self.requests += 1
        await self.open.wait()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1


async def run_loop(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the state has no event to wait for
            await asyncio.sleep(0.001)


async def test_task_starts_when_admitted_and_leaves_at_its_end() -> None:
    admission = ManualAdmission()
    seen: list[int] = []

    async def work() -> None:
        seen.append(admission.admitted)
        await asyncio.sleep(0)

    assert isinstance(admission, Admission)
    async with task_scope(admit=admission) as tasks:
        tasks.create_task(work())
        tasks.create_task(work())
        await run_loop()
        before = list(seen)
        waiting = tasks.statistics().waiting
        admission.open.set()

    assert (before, waiting) == ([], 2)
    assert seen == [1, 2]
    assert admission.admitted == 0
    assert tasks.statistics().finished == 2


async def test_spawn_waits_for_admission() -> None:
    admission = ManualAdmission()
    async with task_scope(admit=admission) as tasks:
        spawned = asyncio.ensure_future(tasks.spawn(asyncio.sleep(0)))
        await run_loop()
        was_waiting = not spawned.done()
        admission.open.set()
        await spawned

    assert was_waiting


async def test_max_running_is_applied_before_admission() -> None:
    admission = ManualAdmission()
    async with task_scope(max_running=2, admit=admission) as tasks:
        for _ in range(5):
            tasks.create_task(asyncio.sleep(0))
        await run_loop()
        requests = admission.requests
        admission.open.set()

    assert requests == 2
    assert admission.requests == 5


async def test_task_cancelled_before_its_admission_never_starts() -> None:
    admission = ManualAdmission()
    coro = asyncio.sleep(0)
    async with task_scope(admit=admission) as tasks:
        task = tasks.create_task(coro)
        await run_loop()
        task.cancel()

    assert task.cancelled()
    assert coro.cr_frame is None
    assert (tasks.statistics().waiting, admission.admitted) == (0, 0)


async def test_admission_that_raises_fails_the_task() -> None:
    class Broken:
        def admit(self) -> "asyncio.Timeout":
            raise OSError("no memory figure")

    coro = asyncio.sleep(0)
    with pytest.raises(ExceptionGroup) as raised:
        async with task_scope(admit=Broken()) as tasks:  # type: ignore[arg-type]
            tasks.create_task(coro)

    assert [str(error) for error in raised.value.exceptions] == ["no memory figure"]
    assert coro.cr_frame is None


async def test_callable_is_accepted_as_admission() -> None:
    admission = ManualAdmission()
    admission.open.set()

    async with task_scope(admit=lambda: admission.admit()) as tasks:
        tasks.create_task(asyncio.sleep(0))

    assert admission.requests == 1


def test_class_as_admission_raises_config_error() -> None:
    with pytest.raises(ConfigError, match="not its class"):
        parse_admission(ManualAdmission)


class Worker:
    def __init__(self, admission: MemoryLimitAdmission) -> None:
        self.is_admitted = False
        self.leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(admission))

    async def _run(self, admission: MemoryLimitAdmission) -> None:
        async with admission.admit():
            self.is_admitted = True
            await self.leave.wait()


async def test_size_admits_one_task_always_and_others_below_it() -> None:
    used = 1000
    admission = MemoryLimitAdmission(100, lambda: used)
    first, second, third = (Worker(admission) for _ in range(3))
    await run_loop()
    assert (first.is_admitted, second.is_admitted, third.is_admitted) == (True, False, False)

    first.leave.set()  # the limit is still exceeded, but no task is admitted
    await run_loop(10)
    assert (second.is_admitted, third.is_admitted) == (True, False)

    used = 99  # no task ends: the change is noticed at the next check
    await wait_until(lambda: third.is_admitted)
    second.leave.set()
    third.leave.set()
    await asyncio.gather(first.task, second.task, third.task)


async def test_cancelled_waiter_lets_the_next_task_in() -> None:
    used = 1000
    admission = MemoryLimitAdmission(100, lambda: used)
    first, second, third = (Worker(admission) for _ in range(3))
    await run_loop()

    second.task.cancel()
    await run_loop()
    first.leave.set()
    await run_loop(10)

    assert (second.is_admitted, third.is_admitted) == (False, True)
    third.leave.set()
    await asyncio.gather(first.task, third.task)


@pytest.mark.parametrize("meter", ["tracemalloc", "rss"])
async def test_scope_with_a_size_runs_all_tasks(meter: str) -> None:
    running = highest = 0

    async def work() -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1

    async with task_scope(admit=0, meter=meter) as tasks:
        for _ in range(5):
            tasks.create_task(work())

    assert tasks.statistics().finished == 5
    if meter == "tracemalloc":
        assert highest == 1  # more than 0 bytes are used all the time


async def test_admission_that_swallows_a_failure_does_not_hide_it() -> None:
    class Swallowing:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exception_info: object) -> bool:
            return True

    async def fail() -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup) as raised:  # the block is what raises
        async with task_scope(admit=lambda: Swallowing()) as tasks:
            tasks.create_task(fail())

    assert "must not swallow" in str(raised.value.exceptions[0])


async def test_task_abandoned_before_its_admission_never_starts() -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report["exception"]))
    opened = asyncio.Event()

    @asynccontextmanager
    async def admit() -> AsyncIterator[None]:
        while not opened.is_set():
            try:
                await opened.wait()
            except asyncio.CancelledError:  # the mistake under test
                continue
        yield

    coro = asyncio.sleep(0)
    async with task_scope(admit=admit, on_exit="cancel", grace=0) as tasks:
        tasks.create_task(coro)
        await run_loop()
    assert tasks.statistics().abandoned == 1
    opened.set()
    await run_loop()

    assert coro.cr_frame is None
    assert "abandoned this task" in str(reports[0])
    assert tasks.statistics().waiting == 0
