"""Tasks start only while there is memory: scripted admissions and scripted sizes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from memtools.errors import ConfigError
from memtools.scopes import Admission, task_scope
from memtools.scopes._admission import MemoryLimitAdmission, parse_admission


class Doorkeeper:
    """Admits when told so; keeps a record."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0
        self.asked = 0

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        self.asked += 1
        await self.open.wait()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110  # asks about a state that tells nobody
            await asyncio.sleep(0.001)


async def test_a_task_takes_its_first_step_only_when_admitted_and_is_inside_until_its_end() -> None:
    door = Doorkeeper()
    seen: list[int] = []

    async def work() -> None:
        seen.append(door.inside)
        await asyncio.sleep(0)

    assert isinstance(door, Admission)
    async with task_scope(admit=door) as tasks:
        tasks.create_task(work())
        tasks.create_task(work())
        await turns()
        before = list(seen)
        waiting = tasks.statistics().waiting
        door.open.set()

    assert (before, waiting) == ([], 2)
    assert seen == [1, 2]
    assert door.inside == 0
    assert tasks.statistics().finished == 2


async def test_spawn_waits_for_admission_too() -> None:
    door = Doorkeeper()
    async with task_scope(admit=door) as tasks:
        spawned = asyncio.ensure_future(tasks.spawn(asyncio.sleep(0)))
        await turns()
        was_waiting = not spawned.done()
        door.open.set()
        await spawned

    assert was_waiting


async def test_the_limit_comes_before_the_admission() -> None:
    door = Doorkeeper()
    async with task_scope(max_running=2, admit=door) as tasks:
        for _ in range(5):
            tasks.create_task(asyncio.sleep(0))
        await turns()
        asked = door.asked
        door.open.set()

    assert asked == 2
    assert door.asked == 5


async def test_a_task_that_is_cancelled_before_its_admission_never_begins() -> None:
    door = Doorkeeper()
    coro = asyncio.sleep(0)
    async with task_scope(admit=door) as tasks:
        task = tasks.create_task(coro)
        await turns()
        task.cancel()

    assert task.cancelled()
    assert coro.cr_frame is None
    assert (tasks.statistics().waiting, door.inside) == (0, 0)


async def test_an_admission_that_breaks_fails_the_task_and_closes_its_coroutine() -> None:
    class Broken:
        def admit(self) -> "asyncio.Timeout":
            raise OSError("no door")

    coro = asyncio.sleep(0)
    with pytest.raises(ExceptionGroup) as raised:
        async with task_scope(admit=Broken()) as tasks:  # type: ignore[arg-type]
            tasks.create_task(coro)

    assert [str(error) for error in raised.value.exceptions] == ["no door"]
    assert coro.cr_frame is None


async def test_a_callable_may_stand_for_an_admission() -> None:
    door = Doorkeeper()
    door.open.set()

    async with task_scope(admit=lambda: door.admit()) as tasks:
        tasks.create_task(asyncio.sleep(0))

    assert door.asked == 1


def test_a_class_is_no_admission() -> None:
    with pytest.raises(ConfigError, match="not its class"):
        parse_admission(Doorkeeper)


class Worker:
    def __init__(self, admission: MemoryLimitAdmission) -> None:
        self.is_inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(admission))

    async def _run(self, admission: MemoryLimitAdmission) -> None:
        async with admission.admit():
            self.is_inside = True
            await self.leave.wait()


async def test_a_size_admits_one_always_and_others_in_order_while_less_is_used() -> None:
    used = 1000
    admission = MemoryLimitAdmission(100, lambda: used)
    first, second, third = (Worker(admission) for _ in range(3))
    await turns()
    assert (first.is_inside, second.is_inside, third.is_inside) == (True, False, False)

    first.leave.set()  # still too much is used, but nobody is inside
    await turns(10)
    assert (second.is_inside, third.is_inside) == (True, False)

    used = 99  # nobody leaves: it is noticed by looking again
    await until(lambda: third.is_inside)
    second.leave.set()
    third.leave.set()
    await asyncio.gather(first.task, second.task, third.task)


async def test_one_who_is_cancelled_at_the_door_lets_the_next_one_in() -> None:
    used = 1000
    admission = MemoryLimitAdmission(100, lambda: used)
    first, second, third = (Worker(admission) for _ in range(3))
    await turns()

    second.task.cancel()
    await turns()
    first.leave.set()
    await turns(10)

    assert (second.is_inside, third.is_inside) == (False, True)
    third.leave.set()
    await asyncio.gather(first.task, third.task)


@pytest.mark.parametrize("meter", ["tracemalloc", "rss"])
async def test_a_scope_with_a_size_runs_all_be_it_one_at_a_time(meter: str) -> None:
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
        assert highest == 1  # more than nothing is used all the time


async def test_an_admission_that_swallows_a_failure_does_not_hide_it() -> None:
    class Swallowing:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *about: object) -> bool:
            return True

    async def fail() -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup) as raised:  # the block is what raises
        async with task_scope(admit=lambda: Swallowing()) as tasks:
            tasks.create_task(fail())

    assert "must not swallow" in str(raised.value.exceptions[0])


async def test_a_task_that_was_given_up_at_the_door_never_begins() -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, about: reports.append(about["exception"]))
    door = asyncio.Event()

    @asynccontextmanager
    async def admit() -> AsyncIterator[None]:
        while not door.is_set():
            try:
                await door.wait()
            except asyncio.CancelledError:  # that is what is wrong with it
                continue
        yield

    coro = asyncio.sleep(0)
    async with task_scope(admit=admit, on_exit="cancel", grace=0) as tasks:
        tasks.create_task(coro)
        await turns()
    assert tasks.statistics().abandoned == 1
    door.set()
    await turns()

    assert coro.cr_frame is None
    assert "abandoned this task" in str(reports[0])
    assert tasks.statistics().waiting == 0
