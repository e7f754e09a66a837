"""Scripted accounts, so that a report's figures are known beforehand."""

import math
from collections.abc import Callable

import pytest

from memtools._records import record
from memtools.ledger import AccountStatistics, Usage
from memtools.ledger._ledger import LedgerStatistics
from memtools.reports import Growth, Report, Row, html_page
from memtools.timelines import Timeline

MIB = 2**20


@pytest.fixture
def account() -> Callable[..., AccountStatistics]:
    """Make an account: `account("scope", "name", peak=3, children=(...))`, sizes in MiB."""

    def make(
        kind: str, name: str, *, peak: float = 1, retained: float = 0, started: int = 1, active: int = 0,
        failed: int = 0, duration_s: float = 1.0, note: str = "", meter: str = "tracemalloc",
        children: tuple[AccountStatistics, ...] = (),
    ) -> AccountStatistics:  # fmt: skip
        return AccountStatistics(
            name=name, kind=kind, started=started, active=active, failed=failed, peak_bytes=int(peak * MIB),
            mean_peak_bytes=int(peak * MIB), retained_bytes=int(retained * MIB), duration_s=duration_s, steps=0,
            exact=not note, note=note, meter=meter, children=children,
        )  # fmt: skip

    return make


@pytest.fixture
def ledger() -> Callable[..., LedgerStatistics]:
    """Make the statistics of a ledger with these accounts; sizes in MiB."""

    def make(*accounts: AccountStatistics, untracked: float = 0) -> LedgerStatistics:
        return LedgerStatistics(accounts, 0, {"tracemalloc": int(untracked * MIB)})

    return make


@pytest.fixture
def usage() -> Callable[..., Usage]:
    """Make a usage: `usage("name", peak=3)`, sizes in MiB."""

    def make(name: str, *, peak: float = 1, retained: float = 0, note: str = "") -> Usage:
        return Usage(
            name=name, retained_bytes=int(retained * MIB), peak_bytes=int(peak * MIB), allocated_bytes=None,
            freed_bytes=None, resident_delta_bytes=0, duration_s=0.5, steps=0, meter="tracemalloc",
            exact=not note, note=note,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def large_report() -> Report:
    """Make a report of 500 owners: a scope with 60 below it, 39 tasks and 400 functions."""

    def row(name: str, number: int, children: tuple[Row, ...] = ()) -> Row:
        return Row(
            name, 1000 + number, 0, 0, (number + 1) * 123_457, number * 7_919, number * 1.37, ("native",), (), children,
            number * 61_001, number * 11,
        )  # fmt: skip

    scopes = (row("shop", 600, tuple(row(f"/page/{number}", number) for number in range(60))),)
    tasks = tuple(row(f"worker of queue {number}", number) for number in range(39))
    functions = tuple(row(f"shop.orders.prices.update_{number}", number) for number in range(400))
    return Report(
        "shop", scopes, tasks, functions, Growth(300 * MIB, 320 * MIB, 20 * MIB, 10 * MIB), at_s=1_800_000_000.0,
        duration_s=604_800.0, identity=(("process", "4711 on web-1"), ("command", "python shop.py --token=***")),
    )  # fmt: skip


@pytest.fixture
def week() -> Timeline:
    """Make a timeline of a week of minutes that rises below a daily cycle, with three events."""
    return _make_week()


@pytest.fixture(scope="session")
def whole_page(large_report: Report) -> str:
    """Make a page with all that a page can have."""
    ahead = Forecast(12 * MIB / 3600, 180_000.0, 130_200.0, 300_000.0, 290 * MIB)
    return html_page(large_report, timeline=_make_week(), forecast=ahead, heap=True)


def _make_week() -> Timeline:
    timeline = Timeline(limit_bytes=512 * MIB)
    for minute in range(10_080):
        base = 180 + 110 * minute / 10_080 + 25 * math.sin(minute / 1440 * 2 * math.pi)
        for offset in range(3):
            used = int((base + (minute * 7_919 + offset * 104_729) % 23) * MIB)
            timeline.add(used, at_s=1_800_000_000.0 + minute * 60 + offset * 20)
    for day, kind in ((1, "deploy"), (3, "cleanup"), (5, "alarm")):
        timeline.mark(kind, f"the {kind} of day {day} <b>", at_s=1_800_000_000.0 + day * 86_400)
    return timeline


@record
class Forecast:
    """The fields of a forecast that a chart shows."""

    rate_bytes_per_s: float
    seconds_to_limit: float | None
    earliest_s: float | None
    latest_s: float | None
    floor_bytes: int | None


@pytest.fixture
def forecast() -> Callable[..., Forecast]:
    """Make a forecast: `forecast(5 * 3600, earliest_s=3.5 * 3600)`."""

    def make(
        seconds_to_limit: float | None = 18_000.0, *, earliest_s: float | None = 13_200.0,
        latest_s: float | None = 30_000.0, floor_bytes: int | None = 290 * MIB,
    ) -> Forecast:  # fmt: skip
        return Forecast(12 * MIB / 3600, seconds_to_limit, earliest_s, latest_s, floor_bytes)

    return make
