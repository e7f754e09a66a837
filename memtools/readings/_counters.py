"""The counters that tell what kind of memory grows, cheap enough for every sample: all together some 5 us.

Covers: resident memory, Python's blocks, C's malloc, what tracemalloc has traced where it is on.
Leaves to others: what a rise of them means (`memtools.analysis`).
"""

import sys
import time

from memtools.readings._malloc import malloc_bytes
from memtools.readings._process import resident_bytes
from memtools.records import record


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
