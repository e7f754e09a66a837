"""The figures that psutil reads, where /proc does not have them.

A file of its own because psutil is loaded on first need: on Linux that is rarely.
"""

import os

import psutil  # type: ignore[import-untyped]  # it ships no types, and its stubs are not a dependency

_cached: tuple[int, psutil.Process] | None = None  # two threads that start at once make two, and one of them is kept


def memory_fields() -> tuple[int, int, int | None, int | None]:
    """Return virtual, resident, shared and peak memory of this process, in bytes; None for what psutil does not have.

    Raises:
        OSError: when psutil cannot read it; its own errors are converted to this one.
    """
    try:
        found = _process().memory_info()
    except psutil.Error as error:
        raise OSError(0, f"psutil: {error}") from error
    # By name, because psutil 8 renames and drops fields: `peak_rss` is its name for the peak that Windows keeps.
    peak = getattr(found, "peak_wset", None) or getattr(found, "peak_rss", None) or None
    return (int(found.vms), int(found.rss), getattr(found, "shared", None), peak)


def physical_bytes() -> int:
    """Return the memory of the machine, in bytes."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Return the memory that the machine can give without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def _process() -> psutil.Process:
    # A psutil.Process from before a fork still reports the parent.
    global _cached
    pid = os.getpid()
    if _cached is None or _cached[0] != pid:
        _cached = (pid, psutil.Process(pid))
    return _cached[1]
