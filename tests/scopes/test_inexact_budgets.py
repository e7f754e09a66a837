"""Budgets that are exceeded by figures that are not exact: by default a warning, and no exception."""

import asyncio
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded, ConfigError
from memtools.events import BudgetOverrun, subscribe
from memtools.ledger import _owner
from memtools.scopes import memory_scope, task_scope

MB = 1_000_000


@pytest.fixture(autouse=True)
def not_warned_yet() -> Iterator[None]:
    before = set(_owner._warned)
    _owner._warned.clear()
    yield
    _owner._warned.clear()
    _owner._warned.update(before)


def fresh_pages() -> mmap.mmap:
    """Return 30 MB of new pages: the heap may have free memory, which would not make the process grow."""
    made = mmap.mmap(-1, 30 * MB)
    made.write(b"x" * 30 * MB)
    return made


def grow_in_scope(**options: Any) -> None:
    with memory_scope("grows", budget=MB, **options):
        pages = fresh_pages()
    pages.close()


def grow_in_call(**options: Any) -> None:
    @memory_budget(MB, **options)
    def grows() -> mmap.mmap:
        return fresh_pages()

    grows().close()


def grow_in_coroutine(**options: Any) -> None:
    @memory_budget(MB, **options)
    async def grows() -> None:
        pages = fresh_pages()
        for _ in range(3):
            await asyncio.sleep(0)
        pages.close()

    asyncio.run(grows())


def grow_in_task(**options: Any) -> None:
    async def grows() -> None:
        pages = fresh_pages()
        for _ in range(3):
            await asyncio.sleep(0)
        pages.close()

    async def main() -> None:
        async with task_scope(name="grows", budget=MB, **options) as tasks:
            tasks.create_task(grows())

    asyncio.run(main())


each_way = pytest.mark.parametrize("grow", [grow_in_scope, grow_in_call, grow_in_coroutine, grow_in_task])


@each_way
def test_inexact_figure_only_warns_by_default(grow: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    with subscribe(events.append), caplog.at_level(logging.WARNING, "memtools.budget"):
        grow(meter="rss")

    [warning] = [record for record in caplog.records if record.message.startswith("Memory budget exceeded")]
    assert "grows used" in warning.message
    assert "resident memory is the whole process's" in warning.message  # the reason
    assert "meter='native' counts exactly" in warning.message  # the cure
    assert [event.exact for event in events if isinstance(event, BudgetOverrun)] == [False]


@each_way
def test_inexact_figure_raises_where_that_is_asked_for(grow: Callable[..., None]) -> None:
    with pytest.raises((BudgetExceeded, ExceptionGroup)) as raised:
        grow(meter="rss", inexact="raise")

    errors = raised.value.exceptions if isinstance(raised.value, ExceptionGroup) else [raised.value]
    assert [type(error) for error in errors] == [BudgetExceeded]


def test_inexact_figure_is_warned_about_once_per_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "memtools.budget"):
        for _ in range(3):
            grow_in_scope(meter="rss")

    assert sum(record.message.startswith("Memory budget exceeded") for record in caplog.records) == 1


def test_other_threads_do_not_stop_a_call_by_tracemalloc(caplog: pytest.LogCaptureFixture) -> None:
    store: list[bytes] = []

    @memory_budget(5 * MB, meter="tracemalloc")
    def waits() -> str:
        thread = threading.Thread(target=lambda: store.extend(bytes(1000) for _ in range(20_000)))
        thread.start()
        thread.join()
        return "done"

    assert waits() == "done"
    assert "other threads ran meanwhile" in caplog.text


def test_exact_figure_of_tracemalloc_still_raises() -> None:
    with pytest.raises(BudgetExceeded), memory_scope("alone", budget=MB, meter="tracemalloc"):
        bytearray(2 * MB)


def test_growth_of_the_process_raises_where_it_is_the_measure() -> None:
    @memory_budget(MB, measure="rss", meter="rss")
    def grows() -> None:
        kept.append(fresh_pages())

    kept: list[mmap.mmap] = []
    with pytest.raises(BudgetExceeded):
        grows()
    kept[0].close()


def test_warning_of_on_exceed_names_the_doubt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "memtools.budget"):
        grow_in_scope(meter="rss", on_exceed="warn")

    assert "(not exact: resident memory is the whole process's)" in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        lambda value: memory_scope("x", budget=MB, inexact=value),
        lambda value: memory_budget(MB, inexact=value),
        lambda value: task_scope(budget=MB, inexact=value),
    ],
)
@pytest.mark.parametrize("value", ["ignore", None, True])
def test_other_values_of_inexact_are_refused(make: Callable[[Any], object], value: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(value)

    assert refusal.value.name == "inexact"


FIRST_BUDGETS = """
from memtools import memory_budget, memory_scope
@memory_budget("100 MiB")
def call():
    return 1
for _ in range(2):
    call()
    with memory_scope("block", budget="100 MiB"):
        pass
"""


def test_first_budget_without_native_ledger_logs_one_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BUDGETS],
        capture_output=True, text=True, timeout=60, check=True, cwd=tempfile.gettempdir(),
        env=os.environ | {"MEMTOOLS_NATIVE": "0", "MEMTOOLS_METER": ""},
    )  # fmt: skip

    [line] = done.stderr.splitlines()
    assert line.startswith("Memory budgets are checked without the native ledger here: MEMTOOLS_NATIVE=0.")
