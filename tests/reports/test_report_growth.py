"""The growth of the process, and the parts that a report splits it into."""

import mmap
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.readings import _resident, read_process, split_resident
from memtools.reports import report
from memtools.reports._rows import measure_growth

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what resident memory consists of")
class TestParts:
    """What the growth consists of that no owner has."""

    def test_unattributed_growth_is_split(
        self, account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
    ) -> None:
        since, split_since = read_process(), split_resident()
        mapping = mmap.mmap(-1, 20 * MIB)
        mapping.write(bytes(20 * MIB))

        taken = report(since=since, split_since=split_since, ledger=ledger(account("scope", "root", retained=5)))

        shared = next(part for part in taken.process.parts if part.name == "shared memory")
        assert shared.size_bytes == pytest.approx(20 * MIB, abs=MIB)
        assert "explained by no block of Python; of it:" in str(taken)
        assert "    shared memory" in str(taken)
        assert f"> shared memory: {shared.advice}" in str(taken)
        assert shared.advice in taken._repr_html_()
        assert shared.to_dict() in taken.to_dict()["process"]["parts"]  # type: ignore[index]
        mapping.close()

    def test_blocks_of_owners_are_no_c_libraries(
        self, account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
    ) -> None:
        empty = replace(split_resident(), **dict.fromkeys(("python_bytes", "malloc_bytes"), 0))

        growth = measure_growth(
            ledger(account("scope", "root", retained=5), untracked=2),
            read_process(),
            read_process(),
            replace(empty, python_bytes=4 * MIB, malloc_bytes=6 * MIB),
            empty,
        )

        assert [part.size_bytes for part in growth.parts if part.name == "C libraries"] == [3 * MIB]
        assert {"Python's small blocks", "in use of malloc"}.isdisjoint(part.name for part in growth.parts)

    def test_growth_without_a_meter_is_split_whole(
        self, account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]
    ) -> None:
        split = split_resident()

        taken = report(since=read_process(), split_since=split, ledger=ledger(account("scope", "root", meter="rss")))

        assert len(taken.process.parts) == len(split.parts())

    def test_split_that_cannot_be_taken_is_a_caveat(self, monkeypatch: pytest.MonkeyPatch) -> None:
        split = split_resident()
        monkeypatch.setattr(_resident, "_SMAPS", "/nowhere/smaps")

        taken = report(split_since=split)

        assert taken.process.parts == ()
        assert "what the growth consists of is not known: " in taken.caveats[0]


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
