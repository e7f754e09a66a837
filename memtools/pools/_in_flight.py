"""The tasks of one pool that have been submitted and have not ended: counts, and the bound on how many may wait."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from memtools.errors import ScopeClosed, ScopeFull

_MAX_LABEL_LENGTH = 200


def label_of(function: Callable[..., object]) -> str:
    """Return the name of a task in reports and errors: that of its function, `module.name`."""
    target: Any = function
    while hasattr(target, "func") and not hasattr(target, "__qualname__"):  # functools.partial
        target = target.func
    name: str = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None)
    label = name if module in (None, "builtins") else f"{module}.{name}"
    return label if len(label) <= _MAX_LABEL_LENGTH else f"{label[:_MAX_LABEL_LENGTH]}…"


class Place:
    """The place of one task in its pool, from its submission to its end.

    It is given back before the result can be seen, so that the caller that has got it finds the place free.
    """

    __slots__ = ("_in_flight",)

    def __init__(self, in_flight: "InFlight") -> None:
        self._in_flight: InFlight | None = in_flight

    def end(self, outcome: str) -> None:
        """Count how the task ended, `"finished"`, `"failed"` or `"cancelled"`; the first call counts."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.count(outcome)
            in_flight.release()

    def end_with(self, future: "Future[Any]") -> None:
        """End with a future, where the task has not ended before: it was cancelled, or the pool has failed."""
        if self._in_flight is not None:
            cancelled = future.cancelled()
            self.end("cancelled" if cancelled else "failed" if future.exception() else "finished")


class InFlight:
    """Counts the tasks of one pool, and makes new ones wait while too many are in it.

    A place is held from the submission of a task to its end, so that the bound holds whatever the workers do meanwhile.

    Args:
        pool: the name of the pool, for errors.
        max_workers: how many tasks run at once.
        max_pending: how many more may be in the pool; None for no bound.

    Attributes:
        submitted: tasks that were given to the pool so far.
        refused: those of them that it did not take.
        finished: tasks that returned.
        failed: tasks that raised, or that were ended with their worker.
        cancelled: tasks that were cancelled before they started.

    Threads: safe.
    """

    def __init__(self, pool: str, max_workers: int, max_pending: int | None) -> None:
        self.submitted = self.refused = self.finished = self.failed = self.cancelled = 0
        self._pool = pool
        self._max_workers = max_workers
        self.max_pending = max_pending
        self._held = 0
        self._closed_reason = ""
        self._lock = threading.RLock()  # a finaliser may end a task in the middle of an operation
        self._waiters: deque[Future[None]] = deque()

    @property
    def capacity(self) -> int | None:
        """How many tasks may be in the pool at once; None for no bound."""
        return None if self.max_pending is None else self._max_workers + self.max_pending

    @property
    def unfinished(self) -> int:
        """How many tasks wait or run."""
        return self.submitted - self.refused - self.finished - self.failed - self.cancelled

    def reserve(self) -> None:
        """Take a place.

        Raises:
            ScopeFull: when none is free.
        """
        with self._lock:
            if self.capacity is not None and self._held >= self.capacity:
                raise ScopeFull(self._pool, self._held - self._max_workers, self.max_pending or 0)
            self._held += 1

    def reserve_later(self) -> "Future[None]":
        """Return a future that is done when a place is held, in order of the calls.

        A caller that stops waiting has to call `stop_waiting`.
        """
        waiter: Future[None] = Future()
        with self._lock:
            if self._closed_reason:
                raise ScopeClosed(self._pool, self._closed_reason)
            if self.capacity is None or self._held < self.capacity:
                self._held += 1
                waiter.set_result(None)
            else:
                self._waiters.append(waiter)
        return waiter

    def stop_waiting(self, waiter: "Future[None]") -> None:
        """Give up a place that was not used: one that is held, or the position in the queue."""
        if not waiter.cancel() and waiter.exception() is None:
            self.release()

    def release(self) -> None:
        """Give a place back: to the first that waits, if there is one."""
        with self._lock:
            while self._waiters:
                waiter = self._waiters.popleft()
                if waiter.set_running_or_notify_cancel():
                    break
            else:
                self._held -= 1
                return
        waiter.set_result(None)

    def count(self, what: str) -> None:
        """Add one to a count: `"submitted"`, `"refused"`, `"finished"`, `"failed"` or `"cancelled"`."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def close(self, reason: str) -> None:
        """Refuse those that wait for a place, and those that come later."""
        with self._lock:
            self._closed_reason = self._closed_reason or reason
            waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.set_running_or_notify_cancel():
                waiter.set_exception(ScopeClosed(self._pool, reason))
