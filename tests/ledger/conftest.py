"""What tests of the ledger start from: the tracemalloc meter, a session that outlasts single scopes, empty accounts.

The tests in `test_ledger_*.py` run twice: as they stand, and with the native meter in the traced one's place, which has
to keep the same promises. Those that are about what tracemalloc cannot know run once.
"""

from collections.abc import Iterator

import pytest

from memtools.ledger import AccountStatistics, Meter, choose_meter, forget_accounts, native_reason, statistics
from memtools.ledger.meters import _choose

_THREADS = "tracemalloc cannot tell threads apart"
_COLLECTIONS = "tracemalloc does not know whose a collected block was"
_SESSIONS = "about tracemalloc's own sessions"
_AFTER_THE_END = "tracemalloc does not know what becomes of a block after its owner's end"
_AGAIN = "the native meter tells an owner again that goes on beyond its grace"
TRACED_ONLY = {
    "test_it_is_told_once_and_a_coroutine_that_handles_it_goes_on": _AGAIN,
    "test_the_budget_of_a_parent_holds_for_its_children": _AGAIN,
    "test_meters_are_chosen_by_name_and_by_environment": "about the names themselves",
    "test_a_thread_that_works_for_a_task_is_charged_to_it_and_not_to_a_bystander": _THREADS,
    "test_two_threads_with_scopes_at_once_add_up_and_say_that_they_are_not_exact": _THREADS,
    "test_an_owner_ended_in_another_thread_is_not_exact": _THREADS,
    "test_a_collection_in_an_innocent_step_does_not_credit_it": _COLLECTIONS,
    "test_an_owner_whose_garbage_may_have_been_collected_says_so": _COLLECTIONS,
    "test_what_a_collection_frees_is_accounted_for": _COLLECTIONS,
    "test_collector_callbacks_are_ours_only_while_somebody_is_measured": _COLLECTIONS,
    "test_sessions_are_reference_counted_and_ended": _SESSIONS,
    "test_a_foreign_start_while_we_trace_changes_nothing": _SESSIONS,
    "test_open_scopes_are_invalid_after_a_foreign_stop_or_clear_and_later_ones_are_right": _SESSIONS,
    "test_usage_can_be_asked_while_a_scope_is_open": _AFTER_THE_END,
    "test_scopes_that_end_out_of_order_are_charged_with_what_they_were_open_for": _AFTER_THE_END,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not metafunc.module.__name__.rpartition(".")[2].startswith("test_ledger_"):
        return
    is_for_both = not native_reason() and metafunc.definition.originalname not in TRACED_ONLY
    metafunc.parametrize("in_its_place", ["tracemalloc", "native"] if is_for_both else ["tracemalloc"], indirect=True)


@pytest.fixture(autouse=True)
def in_its_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the meter of that name answer to `"tracemalloc"`."""
    if getattr(request, "param", "tracemalloc") == "native":
        monkeypatch.setitem(_choose._meters, "tracemalloc", choose_meter("native"))


@pytest.fixture
def traced(in_its_place: None) -> Meter:
    return choose_meter("tracemalloc")


@pytest.fixture
def session(traced: Meter) -> Iterator[Meter]:
    """A session that was there before the first owner of the test, as in a program that traces all along."""
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
