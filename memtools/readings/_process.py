"""How much memory this process uses.

Covers: resident, virtual and peak memory, each from the cheapest source that is right on this platform.
Leaves to others: out of how much (`_now`), of which machine (`_host`).
"""

import mmap
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol, TypeAlias

from memtools._records import record
from memtools.readings._types import ReadingError
from memtools.units import format_size

# Tell, at the price of one index, whether this process made an object or inherited it by a fork.
#
# `os.register_at_fork` hears only of forks by Python. A server written in C (uWSGI, mod_wsgi, a ctypes call) forks
# without it, and a system call to ask for the pid costs a tenth of a whole reading.

_MADV_WIPEONFORK = 18  # Linux 4.14; the mmap module of Python 3.11 does not name it


class ProcessToken(Protocol):
    """`mark[0]` is true in the process that made the mark, and false in a child that it forked."""

    def __getitem__(self, index: int, /) -> object:
        """Return whether the mark was made in this process; `index` is always 0."""
        ...


class _PidToken:
    """Asks for the pid, where the kernel has no page that it wipes at a fork."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> bool:
        return os.getpid() == self._pid


def process_token() -> ProcessToken:
    """Return a mark of this process: a page that the kernel empties in a forked child, else a pid."""
    if sys.platform != "linux":
        return _PidToken()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):  # an older kernel, a sandbox without it, or no memory for a page
        return _PidToken()
    page[0] = 1
    return page


# The true peak of resident memory between two moments, for the price of two system calls.
#
# `ru_maxrss` is wrong as an absolute figure: Linux carries it over `exec`, so a spawned child of 14 MiB reported the 814
# of its parent. But it only ever rises, and when it rises, then to what this process has just used: the rise is true.

if sys.platform == "win32":  # no getrusage there

    def _max_resident_bytes() -> int | None:
        return None

else:
    import resource

    _UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

    def _max_resident_bytes() -> int | None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT_BYTES


class PeakSince:
    """A mark at the highest resident memory so far; `peak_bytes` says how high it has gone since.

    ```python
    mark = PeakSince()
    work()
    peak = mark.peak_bytes()  # bytes, or None: not higher than it had been before the mark
    ```

    Threads: counts the whole process. Cost: 1 us to make, 1 us to ask.
    """

    __slots__ = ("_before", "_measure")

    def __init__(self, *, measure: Callable[[], int | None] = _max_resident_bytes) -> None:
        self._measure = measure
        self._before = measure()

    def peak_bytes(self) -> int | None:
        """Return the highest resident memory since the mark, in bytes; None when it cannot be known.

        It is not known when the process stayed below a peak from before the mark (its own, or one that it inherited
        by `exec`), and on Windows.
        """
        now = self._measure()
        if now is None or self._before is None or now <= self._before:
            return None
        return now


# The highest resident memory of this process since it began.
#
# Linux keeps it as VmHWM; Windows as the peak working set. Elsewhere it is the highest that we have seen ourselves.
# Never `ru_maxrss` alone: it may be the parent's (see `_high_water`, which takes only what is true of it).

_LABEL = b"\nVmHWM:"


def kernel_peak_bytes(path: str = "/proc/self/status") -> int | None:
    """Return VmHWM in bytes; None where the kernel does not keep it."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = file.read(8192)
    except OSError:
        return None

    _, found, rest = status.partition(_LABEL)
    words = rest.partition(b"\n")[0].split() if found else []
    if len(words) != 2 or not words[0].isdigit() or words[1] != b"kB":
        return None
    return int(words[0]) * 1024


class PeakMemory:
    """The kernel's peak, else our own maximum over what we were shown. Threads: safe."""

    __slots__ = ("_highest", "_kernel_peak", "_mark", "_new_mark")

    def __init__(
        self,
        *,
        kernel_peak: Callable[[], int | None] = kernel_peak_bytes,
        peak_since: Callable[[], PeakSince] = PeakSince,
    ) -> None:
        self._kernel_peak = kernel_peak
        self._new_mark = peak_since
        self._mark = peak_since()
        self._highest = 0

    def update(self, resident_bytes: int) -> int:
        """Return the peak in bytes, `resident_bytes` being what is used now."""
        kernel = self._kernel_peak()
        if kernel is not None:
            # Both are sums of counters per processor that lag a little: the peak may read below the present.
            return max(kernel, resident_bytes)
        # A thread that overtakes us here could lower the mark by one reading; the next call mends it.
        self._highest = max(self._highest, resident_bytes, self._mark.peak_bytes() or 0)
        return self._highest

    def reset(self) -> None:
        """Begin anew: a forked child has its own history."""
        self._highest = 0
        self._mark = self._new_mark()


# The second way to the memory of this process: psutil, loaded when it is first needed.
#
# Leaves to others: what psutil is asked (`_psutil`), the first way (`_statm`).

# Virtual, resident, shared and peak memory of one moment, in bytes; None where the source does not say.
MemoryFields: TypeAlias = tuple[int, int, int | None, int | None]


def read_with_psutil(first: Exception | None = None) -> MemoryFields:
    """Return the memory of this process as psutil reads it, `first` being what went wrong with the first way.

    Raises:
        ReadingError: when psutil cannot read it either.
    """
    try:
        from memtools.readings._psutil import memory_fields

        return memory_fields()
    except (OSError, ImportError) as error:
        # Without a descriptor even the import fails; the first refusal is the one to tell of.
        raise _reading_error(first or error) from error


def _reading_error(error: Exception) -> ReadingError:
    number = (error.errno if isinstance(error, OSError) else None) or 0
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    path = error.filename if isinstance(error, OSError) else None
    return ReadingError(number, f"the memory of this process cannot be read: {reason}", path)


@record
class ProcessMemory:
    """The memory of this process at one moment, in bytes.

    Attributes:
        resident_bytes: what lies in physical memory now.
        peak_bytes: the most that ever did; never below `resident_bytes`.
        virtual_bytes: what has been reserved, used or not.
        shared_bytes: the part of the resident memory that belongs to files or to memory shared with others; None where
            the platform does not say.
        at: `time.monotonic()`, seconds.
    """

    resident_bytes: int
    peak_bytes: int
    virtual_bytes: int
    shared_bytes: int | None
    at: float

    def __str__(self) -> str:
        sizes = (self.resident_bytes, self.peak_bytes, self.virtual_bytes)
        return "resident {}, peak {}, virtual {}".format(*map(format_size, sizes))


_peak = PeakMemory()

if sys.platform == "linux":
    from memtools.readings._statm import Statm  # os.pread does not exist on Windows

    _statm = Statm()
    _fields = _statm.fields
    # The method itself: a function around it would cost two in a hundred.
    resident_bytes: Callable[[], int] = _statm.resident_bytes
else:
    _fields = read_with_psutil

    def resident_bytes() -> int:
        """Return the resident memory of this process, in bytes.

        Raises:
            ReadingError: when psutil cannot read it.
        """
        return read_with_psutil()[1]


def _reset_after_fork() -> None:
    if sys.platform == "linux":
        _statm.reset()
    _peak.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def virtual_bytes() -> int:
    """Return how much address space this process has reserved, in bytes.

    Raises:
        ReadingError: when the system does not say.
    """
    return _fields()[0]


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    From VmHWM on Linux (20 us), from the peak working set on Windows. Elsewhere it is the highest that was
    seen by this function and `read_process`, or that the process is known to have risen to since the import.

    Raises:
        ReadingError: when the system does not even say what is used now.
    """
    return read_process().peak_bytes


def read_process() -> ProcessMemory:
    """Return the memory of this process in one record.

    Raises:
        ReadingError: when the system does not say.
    """
    virtual, resident, shared, peak = _fields()
    highest = _peak.update(resident) if peak is None else max(peak, resident)
    return ProcessMemory(resident, highest, virtual, shared, time.monotonic())
