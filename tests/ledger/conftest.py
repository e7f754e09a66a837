"""Fixtures of the ledger's tests: the tracemalloc meter, a session that outlasts single scopes, empty accounts.

The tests in `test_ledger_*.py` run twice: with the tracemalloc meter, and with the native meter in its place, which has
to pass the same tests. Tests about limits of tracemalloc run once.
"""

from collections.abc import Iterator

import pytest

from memtools.ledger import AccountStatistics, Meter, choose_meter, forget_accounts, native_reason, statistics
from memtools.ledger.meters import _choose

_THREADS = "tracemalloc cannot tell threads apart"
_COLLECTIONS = "tracemalloc does not know the owner of a collected block"
_SESSIONS = "about tracemalloc's own sessions"
_AFTER_END = "tracemalloc does not know what becomes of a block after its owner's end"
_CONTEXTS = "the native meter finds the owner from the context"
_RAISES_AGAIN = "the native meter raises again for an owner that goes on beyond its grace"
TRACED_ONLY = {
    "test_exceeded_budget_is_emitted_once_and_may_be_handled": _RAISES_AGAIN,
    "test_budget_of_a_parent_includes_its_children": _RAISES_AGAIN,
    "test_meters_are_chosen_by_name_and_by_environment": "about the names themselves",
    "test_worker_thread_is_charged_to_the_task_that_called_it": _THREADS,
    "test_scopes_in_two_threads_add_up_and_are_not_exact": _THREADS,
    "test_owner_closed_in_another_thread_is_not_exact": _THREADS,
    "test_collection_in_a_step_does_not_credit_its_task": _COLLECTIONS,
    "test_owner_whose_garbage_may_be_collected_is_not_exact": _COLLECTIONS,
    "test_bytes_freed_by_a_collection_are_accounted_for": _COLLECTIONS,
    "test_collector_callbacks_exist_only_while_an_owner_is_open": _COLLECTIONS,
    "test_sessions_are_reference_counted_and_ended": _SESSIONS,
    "test_foreign_start_during_a_session_changes_nothing": _SESSIONS,
    "test_foreign_stop_or_clear_makes_only_open_scopes_inexact": _SESSIONS,
    "test_untracked_scope_says_that_it_is_process_wide": _CONTEXTS,
    "test_scope_that_outlives_its_function_becomes_untracked": _CONTEXTS,
    "test_scope_that_outlives_its_function_on_trio_is_untracked": _CONTEXTS,
    "test_scope_that_outlives_its_coroutine_becomes_untracked": _CONTEXTS,
    "test_usage_of_an_open_scope_is_current": _AFTER_END,
    "test_scopes_closed_out_of_order_are_charged_while_open": _AFTER_END,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not metafunc.module.__name__.rpartition(".")[2].startswith("test_ledger_"):
        return
    is_for_both = not native_reason() and metafunc.definition.originalname not in TRACED_ONLY
    metafunc.parametrize("in_its_place", ["tracemalloc", "native"] if is_for_both else ["tracemalloc"], indirect=True)


@pytest.fixture(autouse=True)
def in_its_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the meter of that name for `"tracemalloc"`."""
    if getattr(request, "param", "tracemalloc") == "native":
        monkeypatch.setitem(_choose._meters, "tracemalloc", choose_meter("native"))


@pytest.fixture
def traced(in_its_place: None) -> Meter:
    return choose_meter("tracemalloc")


@pytest.fixture
def session(traced: Meter) -> Iterator[Meter]:
    """A session that was started before the first owner of the test, as in a program that traces all the time."""
    traced.acquire()
    yield traced
    traced.release()


@pytest.fixture
def accounts() -> Iterator["Accounts"]:
    """The accounts of this test alone."""
    forget_accounts()
    yield Accounts()
    forget_accounts()


class Accounts:
    def __getitem__(self, name: str) -> AccountStatistics:
        return {entry.name: entry for entry in statistics().accounts}[name]

    def names(self) -> list[str]:
        return [entry.name for entry in statistics().accounts]
