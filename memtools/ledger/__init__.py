"""Who is charged for a byte: owners, their tree, the meters that count and the drivers that follow."""

from memtools.ledger._context import Suspension, active_owner, current_tracker, is_failure
from memtools.ledger._coroutines import UNUSED, TrackedCoroutine, is_trackable
from memtools.ledger._instrument import TaskTracking, bind_to_current, track_tasks
from memtools.ledger._ledger import (
    LedgerStatistics,
    close_owner,
    current_usage,
    end_owner,
    forget_accounts,
    open_for_frame,
    open_owner,
    open_owners,
    rename_owner,
    statistics,
    usage_tuple,
)
from memtools.ledger._owner import AccountStatistics, Budget, Kind, Measure, OnExceed, Owner, Usage, UsageTuple
from memtools.ledger.meters._choose import Meter, choose_meter, native_reason

__all__ = [
    "UNUSED",
    "AccountStatistics",
    "Budget",
    "Kind",
    "LedgerStatistics",
    "Measure",
    "Meter",
    "OnExceed",
    "Owner",
    "Suspension",
    "TaskTracking",
    "TrackedCoroutine",
    "Usage",
    "UsageTuple",
    "active_owner",
    "bind_to_current",
    "choose_meter",
    "close_owner",
    "current_tracker",
    "current_usage",
    "end_owner",
    "forget_accounts",
    "is_failure",
    "is_trackable",
    "native_reason",
    "open_for_frame",
    "open_owner",
    "open_owners",
    "rename_owner",
    "statistics",
    "track_tasks",
    "usage_tuple",
]
