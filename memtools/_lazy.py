"""Names of packages that are loaded when they are first used (PEP 562).

A third of the modules is about monitors, leak tests, alerts and metrics, which most command line tools never use.

A name that people guess and that the top-level namespace does not have gets an error that names the right one.
"""

import sys
from importlib import import_module
from typing import Final

_PACKAGES: Final = {
    "AlertRule": "alerts",
    "Alerts": "alerts",
    "Component": "lifecycle",
    "Config": "config",
    "MemoryMiddleware": "integrations",
    "MemoryMonitor": "monitor",
    "WeakParent": "lifecycle",
    "assert_no_leaks": "testing",
    "collect_metrics": "exporters",
    "find_leaks": "testing",
    "report": "reports",
}

# What IPython calls at `%load_ext memtools` and `%unload_ext memtools`.
_EXTENSION: Final = ("load_ipython_extension", "unload_ipython_extension")

# What only reports need, of a package that every program loads.
_READINGS: Final = dict.fromkeys(("ResidentPart", "ResidentSplit", "split_resident"), "memtools.readings._resident")

# What people type who have not read the docs yet: names of other tools, and the obvious short forms.
_GUESSES: Final = {
    "Alert": "Alerts, or memtools.alerts.Alert",
    "Budget": "memory_budget",
    "BudgetError": "BudgetExceeded",
    "Cache": "WeakCache",
    "LRUCache": "BoundedDict, or WeakCache",
    "MemoryAlert": "Alerts",
    "MemoryBudget": "memory_budget",
    "MemoryLimitExceeded": "BudgetExceeded",
    "MemoryScope": "memory_scope",
    "Middleware": "MemoryMiddleware",
    "Monitor": "MemoryMonitor",
    "ProcessPool": "memtools.pools.process_pool_scope",
    "Profiler": "profile_memory",
    "TaskGroup": "task_scope",
    "TaskScope": "task_scope",
    "TTLCache": "BoundedDict",
    "ThreadPool": "memtools.pools.thread_pool_scope",
    "WeakValueCache": "WeakCache",
    "assert_no_leak": "assert_no_leaks",
    "budget": "memory_budget",
    "cache": "bounded_cache",
    "cached": "bounded_cache",
    "check_leaks": "find_leaks",
    "get_limit": "effective_limit",
    "history": "bounded_history",
    "install": "track_tasks",
    "limit": "effective_limit, or memory_budget",
    "lru_cache": "bounded_cache",
    "limit_memory": "memory_budget",
    "memory_limit": "memory_budget, or effective_limit",
    "memory_usage": "memory_scope, or memtools.readings.read_process",
    "metrics": "collect_metrics",
    "monitor_memory": "MemoryMonitor",
    "no_leaks": "assert_no_leaks",
    "profile": "profile_memory",
    "scope": "memory_scope",
    "task_group": "task_scope",
    "process_pool_scope": "memtools.pools.process_pool_scope",
    "thread_pool_scope": "memtools.pools.thread_pool_scope",
    "track": "memory_scope, or track_tasks",
    "track_memory": "memory_scope",
}


def __getattr__(name: str) -> object:
    """Return the object that a name of the top-level namespace stands for, or the package of that name."""
    namespace = sys.modules["memtools"]
    if name in _PACKAGES:
        return _load("memtools", name, f"memtools.{_PACKAGES[name]}")
    if name in _PACKAGES.values():
        return import_module(f"memtools.{name}")
    if name == "__version__":
        return _version()
    if name in _EXTENSION:
        found: object = getattr(import_module("memtools.integrations.ipython"), name)
        return found

    hint = f"; use {_GUESSES[name]}" if name in _GUESSES else ""
    if hint and _is_import_statement():
        # Python replaces the text of an AttributeError here by its own.
        raise ImportError(f"cannot import name {name!r} from 'memtools'{hint}", name="memtools")
    raise AttributeError(f"module 'memtools' has no attribute {name!r}{hint}", name=name, obj=namespace)


def __dir__() -> list[str]:
    return sorted({*vars(sys.modules["memtools"]), *_PACKAGES, "__version__"})


def getattr_of_readings(name: str) -> object:
    """Return the object that a name of `memtools.readings` stands for; it is that package's `__getattr__`."""
    if name in _READINGS:
        return _load("memtools.readings", name, _READINGS[name])
    message = f"module 'memtools.readings' has no attribute {name!r}"
    raise AttributeError(message, name=name, obj=sys.modules["memtools.readings"])


def dir_of_readings() -> list[str]:
    """Return the names of `memtools.readings`; it is that package's `__dir__`."""
    return sorted({*vars(sys.modules["memtools.readings"]), *_READINGS})


def _load(package: str, name: str, module: str) -> object:
    found: object = getattr(import_module(module), name)
    setattr(sys.modules[package], name, found)
    return found


def _is_import_statement() -> bool:
    # Whether `from memtools import NAME` asks, not `memtools.NAME` or `hasattr`.
    from opcode import opmap  # only where a name is missing

    asking = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # there is no public way to the frame that asks
    return asking.f_lasti >= 0 and asking.f_code.co_code[asking.f_lasti] == opmap["IMPORT_FROM"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # parses metadata: only where it is asked for

    try:
        return version("memtools")
    except PackageNotFoundError:
        return "0+source"
