"""What a monitor reads: memory in use, the limit, the room that is left, and time.

Leaves to others: how they are read (`memtools.readings`). A test, or a program that rehearses an emergency, hands in
gauges of its own and scripts them.
"""

import time
from collections.abc import Callable
from functools import partial

from memtools.readings import Headroom, Limit, effective_limit, headroom, resident_bytes
from memtools.records import record


@record
class Gauges:
    """Where a monitor's figures come from.

    Attributes:
        used: bytes in use by this process; asked on every sampled operation, so it must be cheap and safe from any
            thread. May raise OSError.
        limit: the effective limit; asked at every look.
        headroom: what is left below the first wall; asked on the beat.
        clock: monotonic seconds.
    """

    used: Callable[[], int]
    limit: Callable[[], Limit]
    headroom: Callable[[], Headroom]
    clock: Callable[[], float]


def real_gauges(limit: int | str | None = None) -> Gauges:
    """Return the gauges of this process; `limit` is that of `memtools.readings.effective_limit`."""
    return Gauges(resident_bytes, partial(effective_limit, limit), partial(headroom, limit), time.monotonic)
