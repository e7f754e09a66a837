"""Which monitors are started, and what becomes of them in a forked child.

Covers: the weak set for collectors, the one fork handler. Leaves to others: what a monitor renews (`_monitor`).
"""

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memtools.monitor._monitor import MemoryMonitor

# By id, for a monitor may be compared in ways of its own. `valuerefs` is one C call: nobody's end disturbs a walk.
_started: "weakref.WeakValueDictionary[int, MemoryMonitor]" = weakref.WeakValueDictionary()
_all: "weakref.WeakValueDictionary[int, MemoryMonitor]" = weakref.WeakValueDictionary()


def monitors() -> "tuple[MemoryMonitor, ...]":
    """Return the monitors that are started now, by name; for collectors of metrics. Safe from any thread."""
    return tuple(sorted(_alive(_started), key=lambda monitor: monitor.name))


def note_made(monitor: "MemoryMonitor") -> None:
    """Have `monitor` renewed in forked children."""
    _all[id(monitor)] = monitor


def note_started(monitor: "MemoryMonitor") -> None:
    """Have `monitor` listed by `monitors()`."""
    _started[id(monitor)] = monitor


def note_stopped(monitor: "MemoryMonitor") -> None:
    """Have `monitor` listed no more."""
    _started.pop(id(monitor), None)


def _alive(known: "weakref.WeakValueDictionary[int, MemoryMonitor]") -> "list[MemoryMonitor]":
    return [monitor for reference in known.valuerefs() if (monitor := reference()) is not None]


def _renew_in_child() -> None:
    # Nothing is logged and nothing waited for here: other threads of the parent may have held any lock.
    for monitor in _alive(_all):
        monitor._renew_after_fork()  # pyright: ignore[reportPrivateUsage]  # its own room


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
