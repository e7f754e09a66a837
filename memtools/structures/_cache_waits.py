"""Who waits for whom, so that a circle of factories is an error and not a silence.

Covers: threads and tasks that wait for a flight, over all caches of the process.
Leaves to others: the waiting itself (`memtools.structures._cache_flights`, `memtools.structures._cache_tasks`).

A flight is one run of a factory that several may wait for. Its runner is the thread (by number) or the task that runs
the factory. A wait is refused when the runner itself waits, over any number of steps, for the one who asks. A task
that the factory starts and waits for is another runner, which is not followed.
"""

import os
import sys
import threading
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Protocol

from memtools.structures._cache_errors import RecursiveFactory


class Flight(Protocol):
    """One run of a factory."""

    runner: Hashable | None


_lock = threading.RLock()  # a finaliser may ask a cache in the middle of this
_awaited: dict[Hashable, Flight] = {}


@contextmanager
def waiting(waiter: Hashable, flight: Flight, key: object) -> Generator[None, None, None]:
    """Note for the length of the block that `waiter` waits for `flight`, which makes the value of `key`.

    Raises:
        RecursiveFactory: if the flight cannot end before `waiter` goes on.
    """
    with _lock:
        _refuse_circle(waiter, flight, key)
        before = _awaited.get(waiter)
        _awaited[waiter] = flight
    try:
        yield
    finally:
        with _lock:
            _awaited.pop(waiter, None)
            if before is not None:  # we are in a finaliser, in the middle of another wait of the same thread
                _awaited[waiter] = before


def _refuse_circle(waiter: Hashable, flight: Flight, key: object) -> None:
    step: Flight | None = flight
    while step is not None and step.runner is not None:
        if step.runner == waiter:
            raise RecursiveFactory.of(key)
        step = _awaited.get(step.runner)


def _renew() -> None:
    global _lock
    _lock = threading.RLock()
    # The threads that waited are not in the child; a task that waits takes itself out, and does not mind.
    _awaited.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew)
