"""Leftovers per call, and the live bytes where a meter knows them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from memtools.analysis._growth_by_call import per_call
from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.reports import html_page, report

MIB = 2**20
KIB = 1024
Make = Callable[..., AccountStatistics]
Ledger = Callable[..., LedgerStatistics]


def _left(account: AccountStatistics, curve: Callable[[int], float]) -> AccountStatistics:
    checkpoints = tuple((2**power, int(curve(2**power))) for power in range(4, account.started.bit_length()))[-4:]
    left = int(curve(account.started))
    return replace(account, live_bytes=left, live_after_end_bytes=left, live_at_checkpoints=checkpoints, meter="native")


@pytest.mark.parametrize(("calls", "curve", "found"), [
    (4_100, lambda n: 12_595 * n, 12_595),
    (4_096, lambda n: 12_595 * n, 12_595),
    (4_095, lambda n: 12_595 * n, 12_595),
    (4_100, lambda n: 20 * MIB + KIB * n, KIB),  # a cache that was filled first
    (127, lambda n: 100 * KIB * n, 0),  # too few calls to tell
    (4_100, lambda n: min(n, 1_000) * 50 * KIB, 0),  # a bounded cache
    (4_100, lambda n: MIB * n**0.5, 0),  # one that is hit more and more
    (4_100, lambda n: 5 * MIB, 0),
    (4_100, lambda n: 50 * n, 0),  # may be garbage that waits for the collector
    (1_000_000, lambda n: 50 * n, 50),
    (1_000_000, lambda n: 3 * n, 0),  # less than any block
    (4_100, lambda n: -KIB * n, 0),
], ids=lambda value: "" if callable(value) else None)  # fmt: skip
def test_per_call_ignores_what_only_the_first_calls_left(
    account: Make, calls: int, curve: Callable[[int], float], found: int
) -> None:
    left = _left(account("call", "f", started=calls), curve)

    assert per_call(calls, left.live_after_end_bytes, left.live_at_checkpoints) == pytest.approx(found, rel=0.01)


def test_unknown_live_bytes_are_no_leftover() -> None:
    assert per_call(4_100, None, ()) == 0


def test_leftover_names_the_inner_function_not_its_callers(account: Make, ledger: Ledger) -> None:
    inner = _left(account("call", "update_prices", started=4_100), lambda n: 12_595 * n)
    handler = _left(account("task", "handler", started=4_100, children=(inner,)), lambda n: 12_700 * n)
    own = _left(account("call", "logs", started=8_200), lambda n: 500 * n)

    taken = report(title="service", ledger=ledger(handler, own))

    assert [leftover.name for leftover in taken.leftovers] == ["update_prices", "logs"]
    line = "`update_prices` leaves 12.3 KiB behind per call; 4,100 calls, 49.2 MiB live"
    assert line in taken.to_text(width=100)
    assert line in html_page(taken)
    assert taken.to_dict()["leftovers"][0]["per_call_bytes"] == 12_595  # type: ignore[index]


def test_function_in_two_tasks_is_one_leftover(account: Make, ledger: Ledger) -> None:
    places = tuple(
        account("task", name, children=(_left(account("call", "f", started=1_000), lambda n: 2_000 * n),))
        for name in "ab"
    )

    (found,) = report(ledger=ledger(*places)).leftovers

    assert (found.calls, found.per_call_bytes, found.live_after_end_bytes) == (2_000, 2_000, 4_000_000)


def test_rows_are_sorted_by_live_bytes_then_by_peak(account: Make, ledger: Ledger) -> None:
    def task(name: str, peak: float, live_bytes: int) -> AccountStatistics:
        return replace(
            account("task", name, peak=peak, meter="native"), live_bytes=live_bytes, live_after_end_bytes=live_bytes
        )

    taken = report(
        ledger=ledger(task("b", 9, 1_000), task("c", 5, 3 * MIB), task("a", 1, 2_000), task("d", 2, 8 * MIB))
    )

    assert [row.name for row in taken.tasks] == ["d", "c", "b", "a"]


def test_live_column_replaces_retained_when_every_row_knows_it(account: Make, ledger: Ledger) -> None:
    known = replace(account("task", "known", retained=7, meter="native"), live_bytes=3 * MIB, live_after_end_bytes=0)

    all_known = report(ledger=ledger(known)).to_text(width=100)
    some = report(ledger=ledger(known, account("task", "tracemalloc"))).to_text(width=100)
    none = report(ledger=ledger(account("task", "tracemalloc"))).to_text(width=100)

    assert ("live MiB  " in all_known, "retained" in all_known) == (True, False)
    assert "3.00" in all_known
    assert ("live: not shown" in none, "retained" in none) == (True, True)
    assert "retained" in some
    assert "not shown" not in some


def test_html_has_a_live_column_only_when_it_is_known(account: Make, ledger: Ledger) -> None:
    known = replace(account("task", "known", meter="native"), live_bytes=3 * MIB, live_after_end_bytes=0)

    assert "live MiB" in html_page(report(ledger=ledger(known)))
    assert "live MiB" not in html_page(report(ledger=ledger(account("task", "tracemalloc"))))


def test_growth_with_native_meter_uses_live_bytes(account: Make) -> None:
    from memtools.readings import read_process

    since = replace(read_process(), resident_bytes=0)
    root = replace(
        account("scope", "root", retained=5, meter="native"), live_bytes=3 * MIB, live_after_end_bytes=3 * MIB
    )
    ledger = LedgerStatistics((root,), 0, {"native": 2 * MIB, "tracemalloc": 7})

    grown = report(since=since, ledger=ledger).process

    assert (grown.owned_bytes, grown.untracked_bytes, grown.meter_bytes) == (3 * MIB, 2 * MIB, None)
    assert grown.unattributed_bytes == grown.resident_bytes - 5 * MIB
