"""memtools: put a memory budget on any function, block, task or process, and always know who is eating it.

What a program puts on its functions, blocks and data is loaded with this module; the rest of the front door when it is
first asked for, as `import memtools` is paid by every command line tool that uses a decorator.
"""

from typing import TYPE_CHECKING

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
from memtools.ledger import Usage, track_tasks
from memtools.readings import Level, Reading, effective_limit
from memtools.scopes import memory_scope, task_scope
from memtools.structures import BoundedList, WeakCache

if TYPE_CHECKING:
    from memtools.config import Config
    from memtools.exporters import collect_metrics
    from memtools.lifecycle import Component, WeakParent
    from memtools.monitor import MemoryMonitor
    from memtools.testing import assert_no_leaks, find_leaks
else:  # a checker that saw it would take any name for one of ours
    from memtools._lazy import __dir__ as __dir__
    from memtools._lazy import __getattr__ as __getattr__

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
    "memory_budget",
    "memory_scope",
    "profile_memory",
    "subscribe",
    "task_scope",
    "track_tasks",
]
