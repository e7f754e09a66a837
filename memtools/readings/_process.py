"""Resident, virtual and peak memory of this process.

Each figure is from the cheapest source that is right on the platform.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

from memtools._forks import register_after_fork
from memtools._records import record
from memtools.errors import ReadingError
from memtools.readings._types import MemoryFields
from memtools.units import format_size

_PEAK_LABEL: Final = b"\nVmHWM:"


@record
class ProcessMemory:
    """The memory of this process at one moment, in bytes.

    Attributes:
        resident_bytes: the part that lies in physical memory now.
        peak_bytes: the highest resident memory so far; never below `resident_bytes`.
        virtual_bytes: reserved addresses, used or not.
        shared_bytes: the part of the resident memory that belongs to files or to memory shared with other processes;
            None if the platform does not report it.
        at: when, in seconds of `time.monotonic()`.
    """

    resident_bytes: int
    peak_bytes: int
    virtual_bytes: int
    shared_bytes: int | None
    at: float

    def __str__(self) -> str:
        sizes = (self.resident_bytes, self.peak_bytes, self.virtual_bytes)
        return "resident {}, peak {}, virtual {}".format(*map(format_size, sizes))


def read_with_psutil(first_error: Exception | None = None) -> MemoryFields:
    """Return the memory of this process as psutil reads it: the fallback of /proc/self/statm.

    Args:
        first_error: why /proc/self/statm could not be read.

    Raises:
        ReadingError: when psutil cannot read it either; it carries the reason of `first_error`.
    """
    try:
        from memtools.readings._psutil import memory_fields  # loaded on first need

        return memory_fields()
    except (OSError, ImportError) as error:
        # Without a free descriptor even the import fails, so the first error is the one that explains.
        raise _reading_error(first_error or error) from error


def _reading_error(error: Exception) -> ReadingError:
    number = (error.errno if isinstance(error, OSError) else None) or 0
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    path = error.filename if isinstance(error, OSError) else None
    return ReadingError(number, f"the memory of this process cannot be read: {reason}", path)


if sys.platform == "linux":
    from memtools.readings._statm import Statm

    _statm = Statm(fallback=read_with_psutil)
    _fields = _statm.fields
    # The bound method itself: a function around it would cost 2 % more.
    resident_bytes: Callable[[], int] = _statm.resident_bytes
else:
    _fields = read_with_psutil

    def resident_bytes() -> int:
        """Return the resident memory of this process, in bytes.

        Raises:
            ReadingError: when psutil cannot read it.
        """
        return read_with_psutil()[1]


def virtual_bytes() -> int:
    """Return the size of the address space that this process has reserved, in bytes.

    Raises:
        ReadingError: when the system does not report it.
    """
    return _fields()[0]


def anonymous_bytes() -> int:
    """Return the resident memory of this process that belongs to no file and is not shared memory, in bytes.

    Unlike the resident memory it does not grow by what is read from mapped files. Pages that a forked child has not
    changed count for parent and child. Where the system does not tell them apart, it is the resident memory. Cost on
    Linux: one system call.

    Raises:
        ReadingError: when the system does not report it.
    """
    _, resident, shared, _ = _fields()
    return resident - (shared or 0)


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    From VmHWM on Linux (20 us), from the peak working set on Windows. Elsewhere it is the highest figure that this
    function and `read_process` have read, or that `getrusage` shows the process to have reached since the import.

    Raises:
        ReadingError: when the system does not report the current figure either.
    """
    return read_process().peak_bytes


def read_process() -> ProcessMemory:
    """Return the memory of this process in one record.

    Raises:
        ReadingError: when the system does not report it.
    """
    virtual, resident, shared, peak = _fields()
    highest = _peak.update(resident) if peak is None else max(peak, resident)
    return ProcessMemory(resident, highest, virtual, shared, time.monotonic())


if sys.platform == "win32":  # it has no getrusage

    def _max_resident_bytes() -> int | None:
        return None

else:
    import resource

    _UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

    def _max_resident_bytes() -> int | None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT_BYTES


class PeakSince:
    """The highest resident memory since this object was made, for the cost of two system calls.

    ```python
    peak = PeakSince()
    work()
    peak.peak_bytes()  # bytes, or None: not higher than before
    ```

    As an absolute figure `ru_maxrss` is wrong: Linux carries it over `exec`, so a spawned child of 14 MiB reported the
    814 MiB of its parent. But it only ever rises, and if it rises, it rises to what this process has just used.

    Threads: counts the whole process. Cost: 1 us to make, 1 us to ask.
    """

    __slots__ = ("_before", "_measure")

    def __init__(self, *, measure: Callable[[], int | None] = _max_resident_bytes) -> None:
        self._measure = measure
        self._before = measure()

    def peak_bytes(self) -> int | None:
        """Return the highest resident memory since then, in bytes; None if it is not known.

        It is not known on Windows, and if the process stayed below an earlier peak (its own, or one that it inherited
        by `exec`).
        """
        now = self._measure()
        if now is None or self._before is None or now <= self._before:
            return None
        return now


def kernel_peak_bytes(path: str = "/proc/self/status") -> int | None:
    """Return VmHWM in bytes; None if the kernel does not keep it."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = file.read(8192)
    except OSError:
        return None

    _, found, rest = status.partition(_PEAK_LABEL)
    words = rest.partition(b"\n")[0].split() if found else []
    if len(words) != 2 or not words[0].isdigit() or words[1] != b"kB":
        return None
    return int(words[0]) * 1024


class PeakMemory:
    """The highest resident memory since the process started: VmHWM on Linux, else the maximum of the readings.

    Args:
        kernel_peak: returns the peak that the kernel keeps, in bytes, or None.
        peak_since: makes a `PeakSince`, which also sees a rise between two readings.

    Threads: safe.
    """

    __slots__ = ("_highest", "_kernel_peak", "_new_peak_since", "_peak_since")

    def __init__(
        self,
        *,
        kernel_peak: Callable[[], int | None] = kernel_peak_bytes,
        peak_since: Callable[[], PeakSince] = PeakSince,
    ) -> None:
        self._kernel_peak = kernel_peak
        self._new_peak_since = peak_since
        self._peak_since = peak_since()
        self._highest = 0

    def update(self, resident_bytes: int) -> int:
        """Return the peak in bytes, given the current resident memory."""
        kernel = self._kernel_peak()
        if kernel is not None:
            # Both are sums of per-CPU counters that lag a little: the peak may read below the current figure.
            return max(kernel, resident_bytes)
        # Two threads at once may lose the higher of two readings; the next call corrects it.
        self._highest = max(self._highest, resident_bytes, self._peak_since.peak_bytes() or 0)
        return self._highest

    def reset(self) -> None:
        """Forget the peak: a forked child has its own history."""
        self._highest = 0
        self._peak_since = self._new_peak_since()


_peak = PeakMemory()


def _reset_after_fork() -> None:
    if sys.platform == "linux":
        _statm.reset()
    _peak.reset()


register_after_fork(_reset_after_fork)
