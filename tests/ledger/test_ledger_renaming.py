"""Owners that are renamed while they are open."""

import pytest

from memtools.events import ScopeEnded, subscribe
from memtools.ledger import forget_accounts, native_reason, statistics
from memtools.ledger._ledger import rename_owner
from memtools.ledger._owner import MAX_NAMES
from memtools.scopes import memory_scope

METERS = ["rss", "tracemalloc", *([] if native_reason() else ["native"])]


@pytest.fixture(autouse=True)
def fresh_accounts():
    forget_accounts()
    yield
    forget_accounts()


def _accounts():
    return {entry.name: entry for entry in statistics().accounts}


@pytest.mark.parametrize("meter", METERS)
def test_renamed_owner_counts_under_its_new_name(meter: str) -> None:
    received = []
    with subscribe(received.append), memory_scope("request", meter=meter) as scope:
        kept = bytearray(100_000)
        rename_owner(scope.owner, "/orders/{id}")
        during = _accounts()

    after = _accounts()
    assert set(during) == set(after) == {"/orders/{id}"}
    assert (during["/orders/{id}"].started, during["/orders/{id}"].active) == (1, 1)
    assert (after["/orders/{id}"].started, after["/orders/{id}"].active) == (1, 0)
    assert scope.usage.name == "/orders/{id}"
    assert [event.path for event in received if isinstance(event, ScopeEnded)] == [("/orders/{id}",)]
    if meter != "rss":
        assert after["/orders/{id}"].peak_bytes >= len(kept)


def test_other_owners_of_the_old_name_keep_their_account() -> None:
    with memory_scope("request", meter="rss"):
        pass
    with memory_scope("request", meter="rss"), memory_scope("request", meter="rss") as scope:
        rename_owner(scope.owner, "/orders")

    accounts = _accounts()
    assert accounts["request"].started == 2
    assert accounts["request"].active == 0


def test_only_children_opened_after_the_renaming_move() -> None:
    with memory_scope("request", meter="rss") as scope:
        with memory_scope("before", meter="rss"):
            pass
        rename_owner(scope.owner, "/orders")
        with memory_scope("after", meter="rss"):
            pass

    accounts = _accounts()
    assert [child.name for child in accounts["request"].children] == ["before"]
    assert [child.name for child in accounts["/orders"].children] == ["after"]


def test_renamed_owners_leave_no_account_of_the_old_name() -> None:
    for number in range(1000):
        with memory_scope("request", meter="rss") as scope:
            rename_owner(scope.owner, f"/{number % 300}")

    accounts = _accounts()
    assert "request" not in accounts
    assert MAX_NAMES <= len(accounts) <= MAX_NAMES + 1
    assert sum(entry.started for entry in accounts.values()) == 1000


def test_new_name_is_truncated_and_escaped() -> None:
    with memory_scope("request", meter="rss") as scope:
        rename_owner(scope.owner, "a\nb" + "x" * 1000)

    (name,) = _accounts()
    assert name.startswith("a\\nbx")
    assert len(name) == 201  # 200 characters, one of which is escaped by two


def test_closed_owner_or_same_name_is_not_renamed() -> None:
    with memory_scope("request", meter="rss") as scope:
        rename_owner(scope.owner, "request")
    rename_owner(scope.owner, "late")

    assert set(_accounts()) == {"request"}
    assert _accounts()["request"].started == 1
