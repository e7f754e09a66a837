"""How much memory this process uses.

Covers: resident, virtual and peak memory, each from the cheapest source that is right on this platform.
Leaves to others: out of how much (`_effective`), of which machine (`_host`).
"""

import os
import sys
import time
from dataclasses import dataclass

from memtools.readings._peak import PeakMemory
from memtools.readings._statm import Statm
from memtools.readings._unreadable import ReadingError
from memtools.units import format_size


@dataclass(frozen=True, slots=True)
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
    _statm = Statm()

    def resident_bytes() -> int:
        """Return the resident memory of this process, in bytes.

        On Linux one system call on a descriptor that is opened on first use and stays open (1.5 us); elsewhere psutil
        (about 10 us). Right in forked children, in threads, and after somebody has closed our descriptor.

        Raises:
            ReadingError: when neither way works, for instance when no descriptor is left for the first reading.
        """
        try:
            return _statm.resident_bytes()
        except (OSError, ValueError) as error:
            return _by_psutil(error)[1]

    def _fields() -> tuple[int, int, int | None, int | None]:
        try:
            return (*_statm.fields(), None)
        except (OSError, ValueError) as error:
            return _by_psutil(error)

    def _forget() -> None:
        _statm.forget()
        _peak.forget()

    os.register_at_fork(after_in_child=_forget)

else:

    def resident_bytes() -> int:
        """Return the resident memory of this process, in bytes, by psutil (about 10 us).

        Raises:
            ReadingError: when psutil cannot read it.
        """
        return _by_psutil(None)[1]

    def _fields() -> tuple[int, int, int | None, int | None]:
        return _by_psutil(None)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_peak.forget)


def virtual_bytes() -> int:
    """Return how much address space this process has reserved, in bytes.

    Raises:
        ReadingError: when the system does not say.
    """
    return _fields()[0]


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    From VmHWM on Linux (10 us or so), from the peak working set on Windows. Elsewhere it is the highest that was
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


def _by_psutil(first: Exception | None) -> tuple[int, int, int | None, int | None]:
    try:
        from memtools.readings._psutil import memory_fields

        found = memory_fields()
    except (OSError, ImportError) as error:
        # Without a descriptor even the import fails; the first refusal is the one to tell of.
        raise _refusal(first or error) from error
    return found.virtual, found.resident, found.shared, found.peak


def _refusal(error: Exception) -> ReadingError:
    number = (error.errno if isinstance(error, OSError) else None) or 0
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ReadingError(number, f"the memory of this process cannot be read: {reason}", "/proc/self/statm")
