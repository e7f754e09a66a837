"""The report and its recommendations: the largest holders, and the line to change."""

import asyncio
import gc

import pytest

from memtools import BoundedList, memory_scope
from memtools.ledger import forget_accounts
from memtools.monitor._report import pending_tasks

HOARD: list[str] = []
RECENT = BoundedList[str](maxlen=90_000, shrinkable=True)


class Shop:
    def __init__(self) -> None:
        self.seen: dict[int, str] = {}


async def _waits_for_nothing():
    await asyncio.sleep(3600)


@pytest.fixture(autouse=True)
def no_accounts_of_earlier_tests():
    """Forget the accounts of the tests before: only the largest are named."""
    forget_accounts()


def _about(monitor, subject):
    return next(each for each in monitor.recommendations() if subject in each.subject)


def test_module_list_is_named_with_its_source_line(make):
    HOARD.extend(f"{number}" * 9 for number in range(90_000))
    try:
        found = _about(make(), "HOARD")
    finally:
        HOARD.clear()

    assert found.subject.endswith("test_monitor_report.HOARD")
    assert found.place.endswith("test_monitor_report.py:12")
    assert found.held_bytes > 90_000 * 50
    assert "BoundedList(maxlen=...)" in found.advice


def test_dict_untracked_by_gc_is_named_by_its_class(make):
    shop = Shop()
    shop.seen.update((number, f"{number}" * 9) for number in range(90_000))

    found = _about(make(), "Shop.seen")

    assert found.place.endswith("test_monitor_report.py:18")
    assert "bound this dict" in found.advice


def test_bounded_list_is_advised_a_lower_bound(make):
    RECENT.extend(f"{number}" * 9 for number in range(90_000))
    try:
        found = _about(make(), "RECENT")
    finally:
        RECENT.clear()

    assert "lower its bound (maxlen=90000, keep=90000)" in found.advice


def test_open_owner_is_named_with_its_size(make):
    with memory_scope("evening", meter="tracemalloc"):
        block = bytearray(5 << 20)
        found = _about(make(), "evening")

    assert found.held_bytes >= len(block)
    assert "still open" in found.advice


async def test_pending_tasks_are_named_with_their_waiting_line(make):
    tasks = [asyncio.create_task(_waits_for_nothing()) for _ in range(150)]
    await asyncio.sleep(0)
    found = _about(make(), "_waits_for_nothing")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert found.subject == "150 tasks of _waits_for_nothing"
    assert found.place.endswith("test_monitor_report.py:22")
    assert "never ended" in found.advice
    assert not any(each.name == "_waits_for_nothing" for each in pending_tasks())


def test_threshold_above_the_limit_is_reported(make):
    found = next(each for each in make("500 MiB", "5 GiB").recommendations() if each.kind == "monitor")

    assert "critical=5.0 GiB is above the limit of 1000.0 MiB" in found.advice


def test_report_contains_all_sections(machine, make):
    monitor = make(name="shop")
    monitor.record("import", 0.25)
    machine.raise_to(monitor, 700)

    text = monitor.report()

    assert text.startswith("shop: WARNING for 0 s")
    assert "in use     700.0 MiB of 1000.0 MiB (70%)" in text
    assert "warning at 600.0 MiB, critical at 800.0 MiB" in text
    assert "import: 1, 0, 250.000 ms, 250.000 ms" in text
    assert "what to change:" in text


async def test_recommendations_leave_asyncio_free_lists_alone(make):
    # CPython 3.12 shows the free list of _asyncio to who asks its module: this hung in the second walk.
    task = asyncio.create_task(_waits_for_nothing())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    make().recommendations()
    gc.collect()
    make().recommendations()

    assert gc.get_referrers(task)


def test_ended_owner_is_named_with_its_bytes_per_run(make):
    kept = []
    for _ in range(5):
        with memory_scope("hourly", meter="tracemalloc"):
            kept.append(bytearray(1 << 20))

    found = _about(make(), "hourly")

    assert found.held_bytes >= 5 << 20
    assert "1.0 MiB each outlive 5 of them that ended" in found.advice
