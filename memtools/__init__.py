"""memtools: put a memory budget on any function, block, task or process, and always know who is eating it."""

from memtools.config import Config
from memtools.decorators import bounded_history, memory_budget, profile_memory
from memtools.errors import (
    BudgetExceeded,
    ConfigError,
    LeakError,
    LeakWarning,
    MemtoolsError,
    MissingExtraError,
    ScopeClosed,
)
from memtools.events import subscribe
from memtools.exporters import collect_metrics
from memtools.ledger import Usage, install
from memtools.lifecycle import Component, WeakParent
from memtools.monitor import MemoryMonitor
from memtools.readings import Level, Reading, effective_limit
from memtools.scopes import memory_scope, task_scope
from memtools.structures import BoundedList, WeakCache
from memtools.testing import assert_no_leaks, find_leaks

__all__ = [
    "BoundedList",
    "BudgetExceeded",
    "Component",
    "Config",
    "ConfigError",
    "LeakError",
    "LeakWarning",
    "Level",
    "MemoryMonitor",
    "MemtoolsError",
    "MissingExtraError",
    "Reading",
    "ScopeClosed",
    "Usage",
    "WeakCache",
    "WeakParent",
    "assert_no_leaks",
    "bounded_history",
    "collect_metrics",
    "effective_limit",
    "find_leaks",
    "install",
    "memory_budget",
    "memory_scope",
    "profile_memory",
    "subscribe",
    "task_scope",
]
