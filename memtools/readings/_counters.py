"""Counters for leak analysis, and trimming the C heap."""

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from memtools._records import record
from memtools.readings._process import resident_bytes

_MALLINFO2_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
)  # fmt: skip


@record
class Counters:
    """What was in use at one moment: together they show which kind of memory grows.

    Attributes:
        at: when, in seconds of `time.monotonic()`.
        resident_bytes: resident memory of the process.
        blocks: blocks that Python's allocators have handed out (`sys.getallocatedblocks()`); 0 if Python was started
            with C's malloc (`PYTHONMALLOC=malloc`).
        malloc_bytes: bytes in use of C's malloc, including Python's own blocks above 512 bytes; None if unknown.
        traced_bytes: live bytes that tracemalloc has traced; None while it is off.
    """

    at: float
    resident_bytes: int
    blocks: int
    malloc_bytes: int | None = None
    traced_bytes: int | None = None


def take_counters() -> Counters:
    """Return the counters of this process now. Cost: some 5 us, so every sample can have them.

    Raises:
        ReadingError: if the system does not report resident memory.
    """
    return Counters(time.monotonic(), resident_bytes(), sys.getallocatedblocks(), malloc_bytes(), _traced_bytes())


def _traced_bytes() -> int | None:
    tracemalloc = sys.modules.get("tracemalloc")  # not imported: a program that does not trace should not load it
    if tracemalloc is None or not tracemalloc.is_tracing():
        return None
    live: int = tracemalloc.get_traced_memory()[0]
    return live


def malloc_bytes() -> int | None:
    """Return the bytes in use of C's malloc, mapped blocks included; None if unknown.

    It is what extension modules and C libraries use, and Python for blocks above 512 bytes: smaller ones are in arenas
    of Python's own. Only the GNU C library has the function for it (`mallinfo2`, since 2.33). It walks the free lists
    of all arenas: microseconds in a compact heap, more in a fragmented one.
    """
    mallinfo2 = find_mallinfo2()
    if mallinfo2 is None:
        return None
    found = mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)


@cache
def find_mallinfo2() -> Callable[[], Any] | None:  # Any: a structure with the fields above
    if sys.platform != "linux":
        return None
    import ctypes  # loaded on first need

    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    fields = [(name, ctypes.c_size_t) for name in _MALLINFO2_FIELDS]
    function.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    function.argtypes = ()
    found: Callable[[], Any] = function
    return found


def descriptors() -> tuple[str, ...] | None:
    """Return the target of each open descriptor (a path, `socket:[...]`, `pipe:[...]`); None on other systems."""
    if sys.platform != "linux":
        return None
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the descriptor of the listing itself
    return tuple(found)


def trim_heap() -> bool:
    """Return free pages of the C heap to the system; return whether this platform has a function for it.

    C's malloc keeps free pages for later use: a trim took a fragmented heap from 639 to 13 MiB in 77 ms. It uses psutil
    (7.2 and later, on most systems), else glibc's `malloc_trim`.

    Raises:
        OSError: when the system refuses.

    Cost: some milliseconds to a tenth of a second. psutil holds the GIL meanwhile, so no other thread runs Python code.
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
        import psutil  # type: ignore[import-untyped]  # it ships no types, and its stubs are not a dependency
    except (ImportError, OSError):
        return None
    trim: Callable[[], object] | None = getattr(psutil, "heap_trim", None)
    return trim


def _glibc_malloc_trim() -> Callable[[], object] | None:
    import ctypes  # slow to load, and needed only with an old psutil

    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl has none
        return None
    malloc_trim.argtypes = [ctypes.c_size_t]
    malloc_trim.restype = ctypes.c_int
    return lambda: malloc_trim(0)
