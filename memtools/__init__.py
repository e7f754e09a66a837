"""memtools: put a memory budget on any function, block, task or process, and always know what uses the memory.

Decorators, scopes and data structures are loaded with this module; the other names when they are first used, since
every command line tool that uses a decorator pays for `import memtools`.

PYTEST_DONT_REWRITE: there are no assertions to rewrite, and pytest would warn that `memtools run -m pytest` has
imported memtools too early.
"""

from memtools import _search_path as _search_path  # isort: skip  # first: it decides where the others are found
from typing import TYPE_CHECKING

from memtools.decorators import bounded_cache, bounded_history, memory_budget, profile_memory
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
from memtools.structures import BoundedDict, BoundedList, WeakCache

if TYPE_CHECKING:
    from memtools.alerts import AlertRule, Alerts
    from memtools.config import Config
    from memtools.exporters import collect_metrics
    from memtools.integrations import MemoryMiddleware
    from memtools.lifecycle import Component, WeakParent
    from memtools.monitor import MemoryMonitor
    from memtools.reports import report
    from memtools.testing import assert_no_leaks, find_leaks

    __version__: str
else:  # a type checker that saw `__getattr__` would accept any name
    from memtools._lazy import __dir__ as __dir__
    from memtools._lazy import __getattr__ as __getattr__

__all__ = [
    "AlertRule",
    "Alerts",
    "BoundedDict",
    "BoundedList",
    "BudgetExceeded",
    "Component",
    "Config",
    "ConfigError",
    "LeakError",
    "LeakWarning",
    "Level",
    "MemoryMiddleware",
    "MemoryMonitor",
    "MemtoolsError",
    "MissingExtraError",
    "Reading",
    "ScopeClosed",
    "Usage",
    "WeakCache",
    "WeakParent",
    "__version__",
    "assert_no_leaks",
    "bounded_cache",
    "bounded_history",
    "collect_metrics",
    "effective_limit",
    "find_leaks",
    "memory_budget",
    "memory_scope",
    "profile_memory",
    "report",
    "subscribe",
    "task_scope",
    "track_tasks",
]
