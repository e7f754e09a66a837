"""The steps of the house, in the order of their price.

Leaves to others: taking them (`_ladder`).
"""

import time
from collections.abc import Callable

from memtools.cleanup._collect import CollectAll, CollectYoung
from memtools.cleanup._step import Step
from memtools.cleanup._trim import TrimRegistered
from memtools.cleanup._trim_heap import TrimHeap
from memtools.readings import resident_bytes


def default_steps(
    *,
    read: Callable[[], int] = resident_bytes,
    slice_s: float = 0.005,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Step, ...]:
    """Return new steps: ask what is registered, collect the young, collect all, hand free pages back.

    Steps remember how they fared: give each ladder its own.

    Args:
        read: returns what is in use, in bytes.
        slice_s: how long registered things are asked before others have their turn, in seconds.
        clock: monotonic seconds.

    Raises:
        ConfigError: for a slice that is not a number of seconds.
    """
    return (
        TrimRegistered(slice_s=slice_s, clock=clock),
        CollectYoung(read=read),
        CollectAll(read=read, clock=clock),
        TrimHeap(read=read, clock=clock),
    )
