"""What tests of the ledger start from: the traced meter, a session that outlasts single scopes, empty accounts."""

from collections.abc import Iterator

import pytest

from memtools.ledger import Entry, Meter, choose_meter, forget_accounts, statistics


@pytest.fixture
def traced() -> Meter:
    return choose_meter("traced")


@pytest.fixture
def session(traced: Meter) -> Iterator[Meter]:
    """A session that was there before the first owner of the test, as in a program that traces all along."""
    traced.hold()
    yield traced
    traced.release()


@pytest.fixture
def accounts() -> Iterator["Accounts"]:
    """The accounts of this test alone."""
    forget_accounts()
    yield Accounts()
    forget_accounts()


class Accounts:
    def __getitem__(self, name: str) -> Entry:
        return {entry.name: entry for entry in statistics().accounts}[name]

    def names(self) -> list[str]:
        return [entry.name for entry in statistics().accounts]
