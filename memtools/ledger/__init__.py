"""Who is charged for a byte: owners, their tree, the meters that count and the drivers that follow."""

from memtools.ledger._accounts import Entry
from memtools.ledger._book import (
    LedgerStatistics,
    end_owner,
    forget_accounts,
    open_owner,
    open_owners,
    settle_owner,
    statistics,
)
from memtools.ledger._budget import Budget, Measure, OnExceed
from memtools.ledger._carrying import carry
from memtools.ledger._current import active_owner, current_driver
from memtools.ledger._driver import UNUSED, Driven, can_be_driven
from memtools.ledger._endings import is_failure
from memtools.ledger._figures import figures_of, usage_of
from memtools.ledger._installing import Installation, install
from memtools.ledger._meters import Meter, choose_meter, native_reason
from memtools.ledger._owner import Kind, Owner
from memtools.ledger._placing import open_in_frame
from memtools.ledger._renaming import rename_owner
from memtools.ledger._turns import Turn
from memtools.ledger._usage import Figures, Usage

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
