"""The growth of the process, and the parts that a report splits it into."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.readings import read_process
from memtools.reports import report

MIB = 2**20


def test_growth_is_split_into_four_parts(
    account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
) -> None:
    since = replace(read_process(), resident_bytes=0)

    grown = report(since=since, ledger=ledger(account("scope", "root", retained=5), untracked=2)).process

    assert grown.resident_growth_bytes == grown.resident_bytes
    assert (grown.owned_bytes, grown.untracked_bytes, grown.meter_bytes) == (5 * MIB, 2 * MIB, 0)
    assert grown.unattributed_bytes == grown.resident_bytes - 7 * MIB


def test_report_without_a_first_reading_has_no_growth(
    account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
) -> None:
    taken = report(ledger=ledger(account("scope", "root", retained=5)))

    assert taken.process.resident_growth_bytes is None
    assert taken.process.unattributed_bytes is None
    assert "growth" not in str(taken)


def test_rss_meter_explains_no_growth(
    account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
) -> None:
    taken = report(since=read_process(), ledger=ledger(account("scope", "root", meter="rss")))

    assert taken.process.owned_bytes is None
    assert "of it:" not in str(taken)
    assert taken.process.unattributed_bytes is None


def test_report_by_default_shows_this_process_now() -> None:
    from memtools.ledger import forget_accounts
    from memtools.scopes import memory_scope

    forget_accounts()
    with memory_scope("here and now", meter="tracemalloc"):
        block = bytearray(3 * MIB)
        taken = report(since=read_process())

    row = next(row for row in taken.scopes if row.name == "here and now")
    assert row.active == 1
    assert row.retained_bytes == pytest.approx(len(block), rel=0.05)
    assert taken.process.meter_bytes is not None
    assert taken.process.meter_bytes > 0
    forget_accounts()
