"""`track_tasks()`, which gives every task of a loop an account."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.ledger import open_owners, track_tasks
from memtools.ledger._coroutines import TrackedCoroutine
from memtools.scopes import memory_scope

MB = 1_000_000


@pytest.fixture(
    params=[
        "asyncio",
        pytest.param(
            "uvloop",
            marks=pytest.mark.leaves("descriptor", reason="libuv keeps one pipe for signals in each process"),
        ),
    ]
)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop", reason="uvloop has no build for this platform").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


async def works(store: list[bytearray], size: int) -> None:
    await asyncio.sleep(0.001)
    store.append(bytearray(size))


def test_tasks_are_named_by_their_name_or_their_coroutine(run: Callable[..., Any], accounts: Any) -> None:
    store: list[bytearray] = []

    async def main() -> None:
        with track_tasks(meter="tracemalloc"):
            await asyncio.gather(
                asyncio.create_task(works(store, 3 * MB), name="import 7"),
                asyncio.create_task(works(store, MB)),
                asyncio.get_running_loop().create_task(works(store, MB)),
            )

    run(main())

    assert sorted(accounts.names()) == ["import 7", "works"]
    assert accounts["import 7"].retained_bytes == pytest.approx(3 * MB, rel=0.02)
    assert (accounts["works"].started, accounts["works"].kind) == (2, "task")


def test_tasks_of_groups_and_gather_are_tracked(run: Callable[..., Any], accounts: Any) -> None:
    store: list[bytearray] = []

    async def main() -> None:
        with track_tasks(meter="tracemalloc"):
            async with asyncio.TaskGroup() as group:
                group.create_task(works(store, MB), name="grouped")
            await asyncio.gather(works(store, MB))

    run(main())

    assert set(accounts.names()) == {"grouped", "works"}


def test_close_restores_the_loop(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = (loop.get_task_factory(), loop.run_in_executor)
        installation = track_tasks(loop, meter="tracemalloc")
        assert "active" in repr(installation)

        installation.close()
        installation.close()

        assert "closed" in repr(installation)
        assert (loop.get_task_factory(), loop.run_in_executor) == before

    run(main())


def test_close_while_tasks_run_leaves_them_tracked(run: Callable[..., Any], accounts: Any) -> None:
    store: list[bytearray] = []

    async def main() -> None:
        with track_tasks(meter="tracemalloc"):
            task = asyncio.create_task(works(store, 5 * MB), name="outlives")
            await asyncio.sleep(0)
        bare = asyncio.create_task(works(store, 7 * MB), name="bare")
        await asyncio.gather(task, bare)

    run(main())

    assert accounts.names() == ["outlives"]
    assert accounts["outlives"].retained_bytes == pytest.approx(5 * MB, rel=0.02)
    assert open_owners() == ()


async def test_existing_task_factory_still_makes_the_tasks() -> None:
    made: list[object] = []

    def factory(loop: Any, coro: Any, **options: Any) -> Any:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    with track_tasks(meter="tracemalloc"):
        await asyncio.create_task(works([], MB))
    factory_after = loop.get_task_factory()

    assert [type(coro) for coro in made] == [TrackedCoroutine]
    assert factory_after is factory


async def test_task_factory_set_later_survives_close(accounts: Any) -> None:
    loop = asyncio.get_running_loop()
    installation = track_tasks(meter="tracemalloc")
    ours: Any = loop.get_task_factory()

    def later(loop: Any, coro: Any, **options: Any) -> Any:
        return ours(loop, coro, **options)

    loop.set_task_factory(later)
    installation.close()
    await asyncio.create_task(works([], MB))

    assert loop.get_task_factory() is later
    assert accounts.names() == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_are_tracked_from_their_first_step(accounts: Any) -> None:
    store: list[bytearray] = []
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)

    async def eager() -> None:
        store.append(bytearray(3 * MB))
        await asyncio.sleep(0.001)
        store.append(bytearray(2 * MB))

    async def parent() -> None:
        store.append(bytearray(MB))
        task = asyncio.create_task(eager())
        assert len(store) == 2
        store.append(bytearray(MB))
        await task

    with track_tasks(meter="tracemalloc"):
        await asyncio.create_task(parent())

    (child,) = accounts["parent" if "parent" in accounts.names() else accounts.names()[0]].children
    assert child.retained_bytes == pytest.approx(5 * MB, rel=0.02)


async def test_track_tasks_called_twice_raises() -> None:
    with track_tasks(meter="tracemalloc"), pytest.raises(ConfigError, match="tracked already"):
        track_tasks(meter="tracemalloc")


def test_track_tasks_without_a_loop_raises() -> None:
    with pytest.raises(ConfigError, match="loop"):
        track_tasks()


async def test_track_tasks_with_an_unknown_meter_raises() -> None:
    with pytest.raises(ConfigError, match="meter"):
        track_tasks(meter="tracked")


async def test_task_of_no_coroutine_raises_its_own_error() -> None:
    with track_tasks(meter="tracemalloc"), pytest.raises(TypeError, match="coroutine was expected"):
        asyncio.get_running_loop().create_task(42)  # type: ignore[arg-type]  # on purpose


async def test_tracked_coroutine_is_not_tracked_twice(accounts: Any) -> None:
    from memtools.ledger import choose_meter

    with track_tasks(meter="tracemalloc"):
        await asyncio.create_task(TrackedCoroutine(works([], MB), choose_meter("tracemalloc"), name="once"))

    assert accounts.names() == ["once"]
    assert accounts["once"].children == ()


async def test_scopes_in_a_tracked_task_are_its_children(accounts: Any) -> None:
    async def call() -> None:
        async with memory_scope("inside", meter="tracemalloc"):
            await asyncio.sleep(0)

    with track_tasks(meter="tracemalloc"):
        await asyncio.create_task(call(), name="task")

    assert [child.name for child in accounts["task"].children] == ["inside"]
