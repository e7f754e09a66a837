"""The questions to the real machine: which limit holds here, how much room is left, how full are we.

Leaves to others: how the answers are found (`_limit_reader`, `_process`).
"""

import os
import time

from memtools.readings._headroom import Headroom
from memtools.readings._host import available_bytes, physical_bytes
from memtools.readings._limit import Limit
from memtools.readings._limit_reader import LimitReader
from memtools.readings._process import resident_bytes
from memtools.readings._reading import Reading
from memtools.readings._tree import rooted

_reader = LimitReader(
    rooted("/"),
    clock=time.monotonic,
    physical=physical_bytes,
    available=available_bytes,
    resident=resident_bytes,
)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reader.forget)


def effective_limit(limit: int | str | None = None, *, refresh: bool = False) -> Limit:
    """Return how much memory this process may use, and who says so.

    `limit` if given; else the environment variable MEMTOOLS_LIMIT, read at every call; else the least of every cgroup
    limit from our own cgroup to the root (v2 `memory.max` and `memory.high`, v1 `limit_in_bytes` and
    `hierarchical_memory_limit`) and of physical memory. RLIMIT_AS is none of them: it counts reserved addresses.

    Args:
        limit: bytes, a size as `memtools.units.parse_size` takes it, or a share of what the system allows (`"80%"`).
        refresh: look now; else what was found is good for 30 seconds, as limits may change while we run.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.limit(limit, refresh=refresh)


def headroom(limit: int | str | None = None, *, refresh: bool = False) -> Headroom:
    """Return how much more memory this process can take before it meets the first wall.

    The least of `limit - (usage - inactive_file)` of every cgroup above us, of what `limit` or MEMTOOLS_LIMIT leaves to
    our own resident memory, and of what the machine has available. A sibling that fills a shared ancestor shows here.

    Args:
        limit: as for `effective_limit`.
        refresh: look for changed limits now; usage is read at every call.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
    """
    return _reader.headroom(limit, refresh=refresh)


def take_reading(limit: int | str | None = None) -> Reading:
    """Return how much this process uses out of its effective limit, now.

    Raises:
        ConfigError: when `limit` or MEMTOOLS_LIMIT is not a size.
        ReadingError: when the system does not say what is used.
    """
    allowed = _reader.limit(limit).value_bytes
    return Reading(resident_bytes(), allowed, time.monotonic())
