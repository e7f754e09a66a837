"""The counters that tell what kind of memory grows, cheap enough for every sample: all together some 5 us.

Covers: resident memory, Python's blocks, C's malloc, what tracemalloc has traced where it is on.
Leaves to others: what a rise of them means (`memtools.analysis`).
"""

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from memtools._records import record
from memtools.readings._process import resident_bytes

# How much of C's own memory is in use: what extension modules and C libraries hold.
#
# `mallinfo2` of the GNU C library (2.33 or later, man 3 mallinfo). Elsewhere nobody can tell, and None is said. Blocks of
# Python's own up to 512 bytes are not in it: Python takes those from arenas of its own.

_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
)  # fmt: skip


def malloc_bytes() -> int | None:
    """Return the bytes that callers of C's `malloc` have in use, mapped blocks included; None where unknown.

    It walks the free lists of all arenas: microseconds in a tidy process, more in a fragmented one.
    """
    mallinfo = _find_mallinfo2()
    if mallinfo is None:
        return None
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


@cache
def _find_mallinfo2() -> Callable[[], Any] | None:  # Any: a structure with the fields above
    if sys.platform != "linux":
        return None
    import ctypes  # loaded by those who ask

    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    fields = [(name, ctypes.c_size_t) for name in _FIELDS]
    function.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    function.argtypes = ()
    found: Callable[[], Any] = function
    return found


@record
class Counters:
    """What was in use at one moment.

    Attributes:
        at: when, in seconds of `time.monotonic()`.
        resident_bytes: resident memory of the process.
        blocks: what Python's allocators have handed out, in blocks (`sys.getallocatedblocks()`); 0 where Python was
            told to use C's malloc (`PYTHONMALLOC=malloc`).
        malloc_bytes: what callers of C's malloc have in use, Python among them for what is larger than 512 bytes; None
            where nobody can tell.
        traced_bytes: what tracemalloc has seen that is alive; None while it is off.
    """

    at: float
    resident_bytes: int
    blocks: int
    malloc_bytes: int | None = None
    traced_bytes: int | None = None


def take_counters() -> Counters:
    """Return the counters of this process, now.

    Raises:
        ReadingError: when the system does not say what is resident.
    """
    return Counters(time.monotonic(), resident_bytes(), sys.getallocatedblocks(), malloc_bytes(), _traced_bytes())


def _traced_bytes() -> int | None:
    # Not loaded for those who do not trace.
    tracemalloc = sys.modules.get("tracemalloc")
    if tracemalloc is None or not tracemalloc.is_tracing():
        return None
    live: int = tracemalloc.get_traced_memory()[0]
    return live


# Which files, sockets and pipes the process has open.


def descriptors() -> tuple[str, ...] | None:
    """Return what each open descriptor leads to (Linux: a path, `socket:[…]`, `pipe:[…]`); None on other systems."""
    if sys.platform != "linux":
        return None
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the one that listed the folder
    return tuple(found)


# Have the C library hand free pages back to the system.
#
# Covers: psutil where it can (7.2 and later, on most systems), else glibc's own `malloc_trim`.
# Leaves to others: whether it is worth its price (`memtools.cleanup`).
#
# Python frees small objects into arenas of its own and all else through `malloc`, which keeps what it may need again. In
# a fragmented heap 639 MiB were given back to 13 MiB, in 77 ms. psutil holds the GIL meanwhile.


def trim_heap() -> bool:
    """Hand free pages of the heap back to the system; return whether there was a way to do it.

    Raises:
        OSError: when the system refuses.

    Cost: some milliseconds to a tenth of a second, in which no other thread runs Python code.
    """
    trim = _find_trim()
    if trim is None:
        return False
    trim()
    return True


@cache
def _find_trim() -> Callable[[], object] | None:
    return _psutil_heap_trim() or (_glibc_malloc_trim() if sys.platform == "linux" else None)


def _psutil_heap_trim() -> Callable[[], object] | None:
    try:
        import psutil  # type: ignore[import-untyped]  # it ships no types, and its stubs are no dependency of ours
    except (ImportError, OSError):
        return None
    trim: Callable[[], object] | None = getattr(psutil, "heap_trim", None)
    return trim


def _glibc_malloc_trim() -> Callable[[], object] | None:
    import ctypes  # dear, and needed only where psutil is old

    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl has none
        return None
    malloc_trim.argtypes = [ctypes.c_size_t]
    malloc_trim.restype = ctypes.c_int
    return lambda: malloc_trim(0)
