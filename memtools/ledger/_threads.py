"""The CPU time of the other threads, which tells whether another thread has run in between.

tracemalloc counts the whole process: what another thread allocates while an owner is open may end up in the owner's
figures, so they are exact only if no other thread ran. An idle pool thread does no harm, hence the clocks are read and
not the list of threads. The process's CPU time less this thread's is that of all other threads. On Linux both clocks
are exact to the nanosecond, and reading one after the other is off by about 1 µs (median 1.0, 99.9th percentile 2.2,
over 20,000 readings).

Without a GIL another thread may be running at this moment, and the kernel adds the time of such a thread up to some
milliseconds late. So there the number of threads is read as well, and an idle one does raise doubts.

A file of its own because owners keep the reading and the ledger takes it.
"""

import sys
import threading
import time
from _thread import _count as count_threads  # pyright: ignore[reportPrivateUsage]  # it has a docstring
from _thread import get_ident
from typing import Final, NamedTuple

_TOLERANCE_NS: Final = 5_000  # well above the reading error, well below what a thread needs to get the GIL
_CLOCKS_ARE_FINE: Final = sys.platform != "win32"  # both clocks tick at 15.6 ms there
_THREADS_RUN_AT_ONCE: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
_CLOCKS_TELL_ALL: Final = _CLOCKS_ARE_FINE and not _THREADS_RUN_AT_ONCE
IDLE_THREADS = 0  # other threads of which is known that they never run; tests set it for those of the test runner


class OtherThreadsTime(NamedTuple):
    """The CPU time that the other threads had used at one moment, and whether there were any."""

    thread: int
    cpu_ns: int
    has_others: bool


def snapshot() -> OtherThreadsTime:
    """Read how much CPU time the other threads have used."""
    # A reading can only be too low, by what happens between the two clocks: the higher of two is the better one.
    cpu_ns = max(_other_threads_ns(), _other_threads_ns()) if _CLOCKS_ARE_FINE else 0
    return OtherThreadsTime(get_ident(), cpu_ns, not _CLOCKS_TELL_ALL and _has_others())


def ran_since(then: OtherThreadsTime) -> bool:
    """Return whether another thread may have run since `then`."""
    if get_ident() != then.thread or then.has_others:
        return True
    if not _CLOCKS_TELL_ALL and _has_others():
        return True
    return _CLOCKS_ARE_FINE and _other_threads_ns() - then.cpu_ns > _TOLERANCE_NS


def others_are_idle(seconds: float) -> bool:
    """Return whether no other thread has run for so long, which the call waits.

    Of a thread that runs on another processor, the kernel tells at each of its ticks, which are 1 to 10 ms apart.
    """
    if not _CLOCKS_ARE_FINE:
        return False
    before = snapshot()
    time.sleep(seconds)
    return snapshot().cpu_ns - before.cpu_ns <= _TOLERANCE_NS


def _has_others() -> bool:
    # The main thread is not among the first; threads that were made without `threading` are not among the second.
    started = count_threads() - (get_ident() != threading.main_thread().ident)
    return max(started, threading.active_count() - 1) > IDLE_THREADS


def _other_threads_ns() -> int:
    process = time.process_time_ns()
    return process - time.thread_time_ns()
