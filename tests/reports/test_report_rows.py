"""The three views of a report: scopes as a tree, tasks and functions added up."""

from collections.abc import Callable

from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.reports import Row, report

MIB = 2**20
Make = Callable[..., AccountStatistics]
Ledger = Callable[..., LedgerStatistics]


def _names(rows: tuple[Row, ...]) -> list[str]:
    return [row.name for row in rows]


def test_scope_tree_skips_tasks_and_calls(account: Make, ledger: Ledger) -> None:
    inner = account("scope", "inner", peak=2)
    call = account("call", "work", children=(inner,))
    outer = account("scope", "outer", peak=5, children=(account("task", "worker", children=(call,)),))

    taken = report(ledger=ledger(outer))

    assert _names(taken.scopes) == ["outer"]
    assert _names(taken.scopes[0].children) == ["inner"]
    assert _names(taken.tasks) == ["worker"]
    assert _names(taken.functions) == ["work"]


def test_scope_below_many_tasks_is_one_row(account: Make, ledger: Ledger) -> None:
    tasks = tuple(
        account("task", f"t{n}", children=(account("scope", "parse", peak=n, retained=n, duration_s=0.5),))
        for n in (1, 3, 2)
    )

    taken = report(ledger=ledger(account("scope", "root", peak=9, children=tasks)))

    (parse,) = taken.scopes[0].children
    assert (parse.calls, parse.peak_bytes, parse.retained_bytes, parse.duration_s) == (3, 3 * MIB, 6 * MIB, 1.5)


def test_functions_are_summed_over_the_whole_tree(account: Make, ledger: Ledger) -> None:
    deep = account("scope", "s", children=(account("call", "f", peak=7, started=2, failed=1, active=1),))
    taken = report(ledger=ledger(deep, account("call", "f", peak=4, started=3), account("call", "g", peak=5)))

    assert _names(taken.functions) == ["f", "g"]
    first = taken.functions[0]
    assert (first.calls, first.failed, first.active, first.peak_bytes) == (5, 1, 1, 7 * MIB)


def test_rows_are_sorted_by_peak_then_by_name(account: Make, ledger: Ledger) -> None:
    accounts = (account("task", "b", peak=1), account("task", "c", peak=3), account("task", "a", peak=1))

    taken = report(ledger=ledger(*accounts))

    assert _names(taken.tasks) == ["c", "a", "b"]
    assert taken.peak_bytes == 3 * MIB


def test_row_with_one_inexact_account_is_inexact(account: Make, ledger: Ledger) -> None:
    accounts = (
        account("scope", "a", children=(account("call", "f", note="threads"),)),
        account("call", "f"),
        account("call", "g", note="threads"),
    )

    taken = report(ledger=ledger(*accounts))

    exact = {row.name: row.exact for row in taken.functions}
    assert exact == {"f": False, "g": False}
    assert taken.notes == {"threads": 2}
    assert taken.scopes[0].exact


def test_report_without_accounts_is_empty(ledger: Ledger) -> None:
    taken = report(ledger=ledger())

    assert taken.peak_bytes == 0
    assert (taken.scopes, taken.tasks, taken.functions, taken.meters) == ((), (), (), ())
    assert taken.process.resident_bytes > 0
    assert "process" in str(taken)
