"""Following every loop is undone without a trace, and leaves alone what others have done since."""

import asyncio
import sys
from collections.abc import Iterator

import pytest

from memtools.ledger import Meter, choose_meter, forget_accounts, statistics
from memtools.ledger._instrument import track_all_loops

LOOP = asyncio.base_events.BaseEventLoop
NAMES = ("create_task", "run_in_executor")


@pytest.fixture
def meter() -> Iterator[Meter]:
    """The tracemalloc meter, and accounts that begin anew."""
    forget_accounts()
    yield choose_meter("tracemalloc")
    forget_accounts()


async def _one_task() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    await asyncio.create_task(work(), name="one")


def _task_names() -> set[str]:
    return {entry.name for entry in statistics().accounts if entry.kind == "task"}


def test_tasks_are_tracked_until_close(meter: Meter) -> None:
    everywhere = track_all_loops(meter)
    asyncio.run(_one_task())
    while_open = _task_names()
    everywhere.close()
    everywhere.close()

    forget_accounts()
    asyncio.run(_one_task())

    assert "_one_task" in while_open
    assert _task_names() == set()


def test_close_restores_classes_and_finders(meter: Meter) -> None:
    before = {name: vars(LOOP)[name] for name in NAMES}
    finders = list(sys.meta_path)

    everywhere = track_all_loops(meter)
    patched = {name: vars(LOOP)[name] for name in NAMES}
    everywhere.close()

    assert all(patched[name] is not before[name] for name in NAMES)
    assert {name: vars(LOOP)[name] for name in NAMES} == before
    assert sys.meta_path == finders


def test_close_keeps_a_method_that_was_replaced_since(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOP, "create_task", LOOP.create_task)  # so that the test leaves nothing
    everywhere = track_all_loops(meter)

    def replacement(self: object) -> None: ...

    LOOP.create_task = replacement  # type: ignore[method-assign, assignment]
    everywhere.close()

    assert LOOP.create_task is replacement


def test_wrapping_methods_look_like_the_originals(meter: Meter) -> None:
    before = LOOP.create_task
    everywhere = track_all_loops(meter)
    during = LOOP.create_task
    everywhere.close()

    assert (during.__name__, during.__qualname__, during.__doc__) == (
        before.__name__, before.__qualname__, before.__doc__,
    )  # fmt: skip


def test_missing_module_stays_missing(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # what an import that is forbidden looks like
    everywhere = track_all_loops(meter)

    try:
        with pytest.raises(ImportError):
            import uvloop  # noqa: F401
    finally:
        everywhere.close()
