"""Scripted accounts, so that a report's figures are known beforehand."""

from collections.abc import Callable

import pytest

from memtools.ledger import AccountStatistics, Usage
from memtools.ledger._ledger import LedgerStatistics

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
