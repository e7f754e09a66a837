"""Wait with what events tell until somebody may count it.

Covers: a hook that only appends, so that it can be called anywhere; when the waiting events are taken.
Leaves to others: what is counted (`_aggregates`, `opentelemetry`).

A hook may run inside a finaliser, in the middle of any line, that of our own counting included: a lock taken there
would deadlock itself. So the hook puts the event into a queue, which is one C call, and whoever can have the lock
without waiting empties the queue. While one thread counts, the others only append.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from memtools.events import BudgetOverrun, Event, HighUsage, ScopeEnded, Subscription, TaskAbandoned, subscribe

# How many events wait at most for somebody to count them; beyond it the oldest are lost, which takes a thread that
# holds the lock for as long as it takes the others to tell so many.
_MOST_WAITING: Final = 65_536
_PORTION: Final = 256

Counted = ScopeEnded | HighUsage | BudgetOverrun | TaskAbandoned

_all: "WeakSet[Heard]" = WeakSet()


class Heard:
    """Events on their way from where they happened to where they are counted.

    Args:
        count: called with one event at a time, never twice at once.
        may_count: asked, when enough events wait, whether they may be counted here.

    Attributes:
        lock: held while `count` runs; whoever reads what it writes takes it as well.
    """

    def __init__(self, count: Callable[[Counted], object], may_count: Callable[[], bool] = lambda: True) -> None:
        self._count = count
        self._may_count = may_count
        self._waiting: deque[Counted] = deque(maxlen=_MOST_WAITING)
        self._subscription: Subscription | None = None
        self.lock = threading.Lock()
        _all.add(self)

    def listen(self) -> None:
        """Begin to hear events; a second call does nothing."""
        if self._subscription is None:
            self._subscription = subscribe(self._hear)

    def close(self) -> None:
        """Hear no more; what waits can still be counted."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def settle(self) -> None:
        """Count all that waits. The caller holds the lock."""
        waiting = self._waiting
        # Not `while waiting`: threads that go on telling must not keep a reader here.
        for _ in range(len(waiting)):
            try:
                event = waiting.popleft()
            except IndexError:
                return  # the child of a fork that happened in here
            self._count(event)

    def renew_lock(self) -> None:
        """Make the lock anew in the child of a fork: the thread that held it may not be there."""
        self.lock = threading.Lock()

    def _hear(self, event: Event) -> None:
        if not isinstance(event, Counted):
            return
        self._waiting.append(event)
        if len(self._waiting) < _PORTION or not self._may_count():
            return
        lock = self.lock
        if lock.acquire(blocking=False):
            try:
                self.settle()
            finally:
                lock.release()


def _renew_locks() -> None:
    for heard in _all:
        heard.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
