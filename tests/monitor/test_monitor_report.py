"""The report and its recommendations: who holds the most, and the line to change."""

import asyncio
import gc

import pytest

from memtools import BoundedList, memory_scope
from memtools.ledger import forget_accounts
from memtools.monitor._report import unended_tasks

HOARD: list[str] = []
RECENT = BoundedList[str](maxlen=90_000, shrinkable=True)


class Shop:
    def __init__(self) -> None:
        self.seen: dict[int, str] = {}


async def _waits_for_nothing():
    await asyncio.sleep(3600)


@pytest.fixture(autouse=True)
def no_accounts_of_others():
    """Forget what the tests before have left behind: only the largest are named."""
    forget_accounts()


def _about(monitor, subject):
    return next(one for one in monitor.recommendations() if subject in one.subject)


def test_a_list_of_a_module_is_named_with_the_line_where_it_is_made(make):
    HOARD.extend(f"{number}" * 9 for number in range(90_000))
    try:
        found = _about(make(), "HOARD")
    finally:
        HOARD.clear()

    assert found.subject.endswith("test_monitor_report.HOARD")
    assert found.place.endswith("test_monitor_report.py:12")
    assert found.held_bytes > 90_000 * 50
    assert "BoundedList(maxlen=...)" in found.advice


def test_a_dict_of_an_object_is_named_by_its_class_though_the_collector_does_not_track_it(make):
    shop = Shop()
    shop.seen.update((number, f"{number}" * 9) for number in range(90_000))

    found = _about(make(), "Shop.seen")

    assert found.place.endswith("test_monitor_report.py:18")
    assert "bound this dict" in found.advice


def test_a_bounded_list_is_to_have_a_lower_bound(make):
    RECENT.extend(f"{number}" * 9 for number in range(90_000))
    try:
        found = _about(make(), "RECENT")
    finally:
        RECENT.clear()

    assert "lower its bound (maxlen=90000, keep=90000)" in found.advice


def test_an_open_owner_is_named_with_what_it_holds(make):
    with memory_scope("evening", meter="tracemalloc"):
        block = bytearray(5 << 20)
        found = _about(make(), "evening")

    assert found.held_bytes >= len(block)
    assert "still open" in found.advice


async def test_tasks_that_never_ended_are_named_with_the_line_where_they_wait(make):
    tasks = [asyncio.create_task(_waits_for_nothing()) for _ in range(150)]
    await asyncio.sleep(0)
    found = _about(make(), "_waits_for_nothing")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert found.subject == "150 tasks of _waits_for_nothing"
    assert found.place.endswith("test_monitor_report.py:22")
    assert "never ended" in found.advice
    assert not any(one.name == "_waits_for_nothing" for one in unended_tasks())


def test_a_threshold_above_the_limit_is_said(make):
    found = next(one for one in make("500 MiB", "5 GiB").recommendations() if one.kind == "monitor")

    assert "critical=5.0 GiB lies above the limit of 1000.0 MiB" in found.advice


def test_the_report_says_it_all(machine, make):
    monitor = make(name="shop")
    monitor.record("import", 0.25)
    machine.raise_to(monitor, 700)

    text = monitor.report()

    assert text.startswith("shop: WARNING for 0 s")
    assert "in use     700.0 MiB of 1000.0 MiB (70%)" in text
    assert "warning at 600.0 MiB, critical at 800.0 MiB" in text
    assert "import: 1, 0, 250.000 ms, 250.000 ms" in text
    assert "what to change:" in text


async def test_looking_at_everything_touches_no_dead_object_of_asyncio(make):
    # CPython 3.12 shows the free list of _asyncio to who asks its module: this hung in the second walk.
    task = asyncio.create_task(_waits_for_nothing())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    make().recommendations()
    gc.collect()
    make().recommendations()

    assert gc.get_referrers(task)


def test_an_owner_that_ended_and_left_much_alive_is_named_with_what_each_run_left(make):
    kept = []
    for _ in range(5):
        with memory_scope("hourly", meter="tracemalloc"):
            kept.append(bytearray(1 << 20))

    found = _about(make(), "hourly")

    assert found.held_bytes >= 5 << 20
    assert "1.0 MiB each outlive 5 of them that ended" in found.advice
