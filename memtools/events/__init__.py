"""What happened, as one frozen record per fact, for whoever listens."""

from memtools.events._hub import Event, HubStatistics, Subscription, emit, is_heard, statistics, subscribe
from memtools.events._records import (
    BudgetOverrun,
    CleanupEnded,
    HighUsage,
    LevelChanged,
    PressureFelt,
    ReadingTaken,
    ReclaimIneffective,
    ScopeEnded,
    TaskAbandoned,
)

__all__ = [
    "BudgetOverrun",
    "CleanupEnded",
    "Event",
    "HighUsage",
    "HubStatistics",
    "LevelChanged",
    "PressureFelt",
    "ReadingTaken",
    "ReclaimIneffective",
    "ScopeEnded",
    "Subscription",
    "TaskAbandoned",
    "emit",
    "is_heard",
    "statistics",
    "subscribe",
]
