"""Owners of memory, the meters that count for them, and the accounts of what they used."""

from memtools.ledger._context import active_owner
from memtools.ledger._instrument import bind_to_current, track_tasks
from memtools.ledger._ledger import forget_accounts, open_owners, statistics
from memtools.ledger._owner import AccountStatistics, Budget, Meter, Owner, Usage
from memtools.ledger.meters._choose import choose_meter, native_reason

__all__ = [
    "AccountStatistics",
    "Budget",
    "Meter",
    "Owner",
    "Usage",
    "active_owner",
    "bind_to_current",
    "choose_meter",
    "forget_accounts",
    "native_reason",
    "open_owners",
    "statistics",
    "track_tasks",
]
