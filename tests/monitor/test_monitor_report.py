"""The report and its recommendations: the largest holders, and the line to change."""

import asyncio
import gc
import os
import platform
import socket
import sys
from datetime import UTC, datetime, timedelta

import pytest

from memtools import BoundedDict, BoundedList, memory_scope
from memtools._identity import command_line
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
    assert found.place.endswith("test_monitor_report.py:18")
    assert found.held_bytes > 90_000 * 50
    assert "BoundedList(maxlen=...)" in found.advice


def test_dict_untracked_by_gc_is_named_by_its_class(make):
    shop = Shop()
    shop.seen.update((number, f"{number}" * 9) for number in range(90_000))

    found = _about(make(), "Shop.seen")

    assert found.place.endswith("test_monitor_report.py:24")
    assert "bound this dict" in found.advice


@pytest.mark.once
def test_bounded_dict_is_named_once_with_its_bound(make):
    shop = Shop()
    shop.seen = BoundedDict(maxlen=90_000, drop="least_recent", ttl=3_600)
    shop.seen.update((number, f"{number}" * 9) for number in range(90_000))

    found = [each for each in make().recommendations() if "Shop.seen" in each.subject]

    assert [each.advice for each in found] == [
        "lower its bound (maxlen=90000, keep=90000); 90,000 items are in it",
    ]


@pytest.mark.once
def test_bounded_list_is_advised_a_lower_bound(make):
    RECENT.extend(f"{number}" * 9 for number in range(90_000))
    try:
        found = _about(make(), "RECENT")
    finally:
        RECENT.clear()

    assert "lower its bound (maxlen=90000, keep=90000)" in found.advice


@pytest.mark.once
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
    assert found.place.endswith("test_monitor_report.py:28")
    assert "never ended" in found.advice
    assert not any(each.name == "_waits_for_nothing" for each in pending_tasks())


@pytest.mark.once
def test_threshold_above_the_limit_is_reported(make):
    found = next(each for each in make("500 MiB", "5 GiB").recommendations() if each.kind == "monitor")

    assert "critical=5.0 GiB is above the limit of 1000.0 MiB" in found.advice


@pytest.mark.once
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


@pytest.mark.once
def test_ended_owner_is_named_with_its_bytes_per_run(make):
    kept = []
    for _ in range(5):
        with memory_scope("hourly", meter="tracemalloc"):
            kept.append(bytearray(1 << 20))

    found = _about(make(), "hourly")

    assert found.held_bytes >= 5 << 20
    assert "1.0 MiB each outlive 5 of them that ended" in found.advice


def test_report_says_when_where_and_of_which_program(make, monkeypatch):
    monkeypatch.setenv("POD_NAME", "shop-7d4b9c")
    monkeypatch.setenv("POD_NAMESPACE", "default")
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-m", "shop", "--db", "postgres://ada:pw@db/shop", "--api-key", "s3"]
    )

    lines = dict(line.split(maxsplit=1) for line in make().report().splitlines()[1:6])

    assert abs(datetime.fromisoformat(lines["at"]) - datetime.now(UTC)) < timedelta(seconds=60)
    assert lines["process"] == f"{os.getpid()} on {socket.gethostname()}"
    assert lines["pod"] == "default/shop-7d4b9c"
    assert lines["versions"].endswith(f"Python {platform.python_version()}")
    assert lines["command"] == "python -m shop --db postgres://***@db/shop --api-key ***"


def test_report_is_made_of_a_fresh_reading(machine, make):
    monitor = make()
    machine.set(monitor, 100)
    machine.used = 321 * 2**20

    assert "in use     321.0 MiB of" in monitor.report()


def test_report_without_a_fresh_reading_has_the_last_one(machine, make):
    monitor = make()
    machine.set(monitor, 100)
    machine.refuses = True

    assert "in use     100.0 MiB of" in monitor.report()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--password=x", "a"], "--password=*** a"),
        (["--password", "x", "a"], "--password *** a"),
        (["DB_TOKEN=x"], "DB_TOKEN=***"),
        (["--author", "--verbose"], "--author --verbose"),
        (["a\nb"], "a\\nb"),
        (["x" * 400], "x" * 300 + "…"),
    ],
)
def test_command_line_is_cut_and_masked(monkeypatch, words, shown):
    monkeypatch.setattr(sys, "orig_argv", words)

    assert command_line() == shown
