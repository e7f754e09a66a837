"""How much memory this process uses.

Covers: resident, virtual and peak memory, each from the cheapest source that is right on this platform.
Leaves to others: out of how much (`_now`), of which machine (`_host`).
"""

import os
import sys
import time
from collections.abc import Callable

from memtools.readings._peak import PeakMemory
from memtools.readings._second_way import by_psutil
from memtools.records import record
from memtools.units import format_size


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
    _fields = by_psutil

    def resident_bytes() -> int:
        """Return the resident memory of this process, in bytes.

        Raises:
            ReadingError: when psutil cannot read it.
        """
        return by_psutil()[1]


def _forget() -> None:
    if sys.platform == "linux":
        _statm.forget()
    _peak.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


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
    highest = _peak.after(resident) if peak is None else max(peak, resident)
    return ProcessMemory(resident, highest, virtual, shared, time.monotonic())
