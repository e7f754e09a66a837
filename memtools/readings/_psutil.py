"""What psutil is asked for; nobody else in memtools knows it.

Fields are read by name: psutil 8 renames and drops some. Loaded on first need, for on Linux there is seldom one.
Threads: safe; two threads that start at once make two `psutil.Process`, and one of them is kept.
"""

import os

import psutil  # type: ignore[import-untyped]  # it ships no types, and its stubs are no dependency of ours

_cached: tuple[int, psutil.Process] | None = None


def memory_fields() -> tuple[int, int, int | None, int | None]:
    """Return virtual, resident, shared and peak memory of this process, in bytes; None where psutil does not say.

    Raises:
        OSError: when psutil cannot read it; its own errors are turned into this one.
    """
    try:
        found = _process().memory_info()
    except psutil.Error as error:
        raise OSError(0, f"psutil: {error}") from error
    # On Windows the kernel keeps the peak of the process itself; `peak_rss` is the name of psutil 8.
    peak = getattr(found, "peak_wset", None) or getattr(found, "peak_rss", None) or None
    return (int(found.vms), int(found.rss), getattr(found, "shared", None), peak)


def physical_bytes() -> int:
    """Return how much memory the machine has, in bytes."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Return how much memory the machine can still give without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def _process() -> psutil.Process:
    # A psutil.Process made before a fork goes on reporting the parent.
    global _cached
    pid = os.getpid()
    if _cached is None or _cached[0] != pid:
        _cached = (pid, psutil.Process(pid))
    return _cached[1]
