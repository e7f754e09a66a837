"""What happened, as one frozen record per fact, for whoever listens."""

from memtools.events._hub import Event, HubStatistics, Subscription, emit, is_heard, statistics, subscribe
from memtools.events._records import BudgetOverrun, HighUsage, ScopeEnded, TaskAbandoned

__all__ = [
    "BudgetOverrun",
    "Event",
    "HighUsage",
    "HubStatistics",
    "ScopeEnded",
    "Subscription",
    "TaskAbandoned",
    "emit",
    "is_heard",
    "statistics",
    "subscribe",
]
