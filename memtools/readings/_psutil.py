"""The figures that psutil reads, where /proc does not have them, and those of child processes.

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


def unique_bytes(pid: int) -> int | None:
    """Return the memory that only the process `pid` has, in bytes; None where psutil cannot tell."""
    try:
        found = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return None
    unique = getattr(found, "uss", None)
    return None if unique is None else int(unique)


class Child:
    """A child process.

    Args:
        process: as psutil has found it.

    Attributes:
        pid: its process id.
    """

    __slots__ = ("_process", "pid")

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.pid = int(process.pid)

    def name(self) -> str:
        """Return its name, as the system gives it; `?` if it has ended meanwhile."""
        try:
            return str(self._process.name())
        except (psutil.Error, OSError):
            return "?"

    def resident_bytes(self) -> int:
        """Return its resident memory, in bytes; 0 if it has ended."""
        try:
            return int(self._process.memory_info().rss)
        except (psutil.Error, OSError):
            return 0


def children() -> list[Child]:
    """Return the child processes, and those that they started; none where they cannot be listed."""
    try:
        return [Child(process) for process in psutil.Process().children(recursive=True)]
    except (psutil.Error, OSError):
        return []


def _process() -> psutil.Process:
    # A psutil.Process from before a fork still reports the parent.
    global _cached
    pid = os.getpid()
    if _cached is None or _cached[0] != pid:
        _cached = (pid, psutil.Process(pid))
    return _cached[1]
