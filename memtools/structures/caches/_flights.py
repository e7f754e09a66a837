"""One run of a factory for all threads that miss the same key at the same time.

Covers: waiting for another thread's run, handing out its value or its failure.
Leaves to others: tasks (`_tasks`), where the value is kept
(`_store`).
"""

import threading
from types import TracebackType
from typing import Generic, TypeVar

from memtools.structures.caches._entries import MISSING, Missing
from memtools.structures.caches._waits import Runner, this_thread, waiting

V = TypeVar("V")


class ThreadFlight(Generic[V]):
    """One run of a factory in the thread that made this object.

    Attributes:
        runner: that thread.
        is_awaited: whether another thread has joined; set while the cache is locked.
    """

    __slots__ = ("__weakref__", "_ended", "_error", "_trace", "_value", "is_awaited", "runner")

    def __init__(self) -> None:
        self.runner: Runner | None = this_thread()
        self.is_awaited = False
        self._ended = threading.Event()
        self._value: V | Missing = MISSING
        self._error: Exception | None = None
        self._trace: TracebackType | None = None

    def land(self, value: V) -> None:
        """Hand `value` to all who wait."""
        self._value = value
        self._ended.set()

    def fail(self, error: BaseException) -> None:
        """Hand `error` to all who wait; what was meant for one thread (`KeyboardInterrupt`) stays there."""
        # Not kept for nobody: the traceback may know this object, and the circle would keep the factory's frames.
        if self.is_awaited and isinstance(error, Exception):
            self._error, self._trace = error, error.__traceback__
        self._ended.set()

    def wait(self, key: object) -> V | Missing:
        """Wait for the end; return the value, or `MISSING` where the run was broken off and someone has to try again.

        Raises:
            RecursiveFactory: if this thread makes the value of `key` itself, or the run waits for this thread.
            Exception: what the factory raised.
        """
        with waiting(this_thread(), self, key):
            self._ended.wait()

        if self._error is None:
            return self._value
        try:
            # One exception is raised in many threads: each starts from the factory's traceback, or it would grow.
            raise self._error.with_traceback(self._trace)
        finally:
            # The traceback holds this frame, and through it this object and the exception: a circle.
            del self
