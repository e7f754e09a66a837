"""Load the rest of the front door when it is first asked for.

Covers: its names and the rooms that have them. Leaves to others: what is loaded with it (`memtools` itself).

Every command line tool that puts a decorator on a function pays for `import memtools`, and a third of the modules is
about monitors, leak tests and metrics, for which most of these never ask.
"""

import sys
from importlib import import_module
from typing import Final

_ROOMS: Final = {
    "Component": "lifecycle",
    "Config": "config",
    "MemoryMonitor": "monitor",
    "WeakParent": "lifecycle",
    "assert_no_leaks": "testing",
    "collect_metrics": "exporters",
    "find_leaks": "testing",
}


def __getattr__(name: str) -> object:
    """Return what a name of the front door stands for, or the room of that name."""
    front_door = sys.modules["memtools"]
    if name in _ROOMS:
        found = getattr(import_module(f"memtools.{_ROOMS[name]}"), name)
        setattr(front_door, name, found)
        return found
    if name in _ROOMS.values():
        return import_module(f"memtools.{name}")
    raise AttributeError(f"module 'memtools' has no attribute {name!r}", name=name, obj=front_door)


def __dir__() -> list[str]:
    return sorted({*vars(sys.modules["memtools"]), *_ROOMS})
