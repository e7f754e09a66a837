"""Who is charged for a byte: owners, their tree, the meters that count and the drivers that follow."""

from memtools.ledger._context import Turn, active_owner, current_driver, is_failure
from memtools.ledger._coroutines import UNUSED, Driven, can_be_driven
from memtools.ledger._instrument import Installation, carry, install
from memtools.ledger._ledger import (
    LedgerStatistics,
    end_owner,
    figures_of,
    forget_accounts,
    open_in_frame,
    open_owner,
    open_owners,
    rename_owner,
    settle_owner,
    statistics,
    usage_of,
)
from memtools.ledger._owner import Budget, Entry, Figures, Kind, Measure, OnExceed, Owner, Usage
from memtools.ledger.meters._choose import Meter, choose_meter, native_reason

__all__ = [
    "UNUSED",
    "Budget",
    "Driven",
    "Entry",
    "Figures",
    "Installation",
    "Kind",
    "LedgerStatistics",
    "Measure",
    "Meter",
    "OnExceed",
    "Owner",
    "Turn",
    "Usage",
    "active_owner",
    "can_be_driven",
    "carry",
    "choose_meter",
    "current_driver",
    "end_owner",
    "figures_of",
    "forget_accounts",
    "install",
    "is_failure",
    "native_reason",
    "open_in_frame",
    "open_owner",
    "open_owners",
    "rename_owner",
    "settle_owner",
    "statistics",
    "usage_of",
]
