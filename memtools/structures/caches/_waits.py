"""Who waits for whom, so that a circle of factories is an error and not a silence.

Covers: threads and tasks that wait for a flight, over all caches of the process.
Leaves to others: the waiting itself (`_flights`, `_tasks`).

A flight is one run of a factory that several may wait for. Its runner is the thread or the task that runs the factory.
A wait is refused when the runner itself waits, over any number of steps, for the one who asks. A task that the factory
starts and waits for is another runner, which is not followed.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, TypeAlias
from weakref import ref

from memtools.structures.caches._errors import RecursiveFactory

# A number and not the thing itself, and flights only weakly: a task whose loop was abandoned must not live on for us.
Runner: TypeAlias = tuple[str, int]


class Flight(Protocol):
    """One run of a factory."""

    runner: Runner | None


_lock = threading.RLock()  # a finaliser may ask a cache in the middle of this
_awaited: dict[Runner, ref[Flight]] = {}


def this_thread() -> Runner:
    """Return the running thread."""
    return "thread", threading.get_ident()


def this_task() -> Runner:
    """Return the running task."""
    return "task", id(asyncio.current_task())


@contextmanager
def waiting(waiter: Runner, flight: Flight, key: object) -> Generator[None, None, None]:
    """Note for the length of the block that `waiter` waits for `flight`, which makes the value of `key`.

    Raises:
        RecursiveFactory: if the flight cannot end before `waiter` goes on.
    """
    with _lock:
        _refuse_circle(waiter, flight, key)
        before = _awaited.get(waiter)
        _awaited[waiter] = ref(flight)
    try:
        yield
    finally:
        with _lock:
            _awaited.pop(waiter, None)
            if before is not None:  # we are in a finaliser, in the middle of another wait of the same thread
                _awaited[waiter] = before


def _refuse_circle(waiter: Runner, flight: Flight, key: object) -> None:
    step: Flight | None = flight
    while step is not None and step.runner is not None:
        if step.runner == waiter:
            raise RecursiveFactory.of(key)
        awaited = _awaited.get(step.runner)
        step = None if awaited is None else awaited()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()
    # The threads that waited are not in the child; a task that waits takes itself out, and does not mind.
    _awaited.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew)
