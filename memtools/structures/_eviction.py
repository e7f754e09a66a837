"""The functions of the user that lists and caches call: `on_evict` hooks, and `sizeof`.

A file of its own because lists and caches share it, and neither may import the other.
"""

import logging
import operator
from collections import deque
from collections.abc import Callable, Iterable, Sized
from threading import RLock, local
from typing import Any, Final, Generic, SupportsIndex, TypeVar, cast

from memtools._forks import register_after_fork
from memtools._safe_calls import RateLimitedLogger
from memtools.errors import ConfigError

B = TypeVar("B", bound=Sized)

# A hook that puts something back each time evicts without end.
_MAX_ROUNDS: Final = 100

_log = logging.getLogger("memtools.structures")
_count_lock = RLock()  # re-entrant: a finaliser may fail in between


def _renew_lock() -> None:
    global _count_lock
    _count_lock = RLock()


register_after_fork(_renew_lock)


def measure(sizeof: Callable[[Any], int], item: object) -> int:
    """Return what `sizeof` says of an item: a whole number, of other libraries, too (`numpy.int64`).

    Raises:
        ConfigError: for anything else, such as True, None or a fraction.
        Exception: what `sizeof` raises.
    """
    answer = cast("object", sizeof(item))  # the function may return anything
    return answer if type(answer) is int else checked_size(sizeof, answer)


def checked_size(sizeof: object, answer: object) -> int:
    """Return an answer of `sizeof` as an int.

    Raises:
        ConfigError: for an answer that is no whole number.
    """
    if isinstance(answer, bool) or not hasattr(type(answer), "__index__"):
        raise wrong_size(sizeof, answer)
    return operator.index(cast("SupportsIndex", answer))


def wrong_size(sizeof: object, answer: object) -> ConfigError:
    """Return the error for an answer of `sizeof` that is no size."""
    return ConfigError("sizeof", sizeof, f"a function that returns a number of bytes, not {answer!r}")


class EvictionHook(Generic[B]):
    """The user's `on_evict`, isolated from the container that calls it.

    A failure is logged, at most once a minute, and counted; it is never raised. What is not an `Exception`
    (`KeyboardInterrupt`, `SystemExit`, cancellation) passes. When the hook itself causes evictions, they are reported
    after it has returned: calls are never nested within one thread.

    Threads: each thread reports its own evictions at once, so several threads may be in the hook at the same time.
    Fork: the queue of each thread is thread-local, so a child process has nothing to renew.

    Args:
        hook: the user's function.
        arguments: splits a batch of evicted items into the arguments of each call of `hook`.

    Attributes:
        failures: how often the hook raised, or was stopped because it evicted without end.
    """

    __slots__ = ("_arguments", "_hook", "_logger", "_thread", "failures")

    def __init__(self, hook: Callable[..., object], *, arguments: Callable[[B], Iterable[tuple[Any, ...]]]) -> None:
        self._hook = hook
        self._arguments = arguments
        self._thread = local()  # its `queue` exists while the thread is in the hook
        self._logger = RateLimitedLogger(_log)
        self.failures = 0

    def notify(self, evicted: B) -> None:
        """Call the hook for a batch of evicted items: now, or after the call of the hook that this thread is in."""
        if not evicted:
            return
        queue: deque[B] | None = getattr(self._thread, "queue", None)
        if queue is not None:
            queue.append(evicted)
            return

        self._thread.queue = queue = deque([evicted])
        try:
            self._notify_queued(queue)
        finally:
            del self._thread.queue

    def _notify_queued(self, queue: deque[B]) -> None:
        for _ in range(_MAX_ROUNDS):
            if not queue:
                return
            for arguments in self._arguments(queue.popleft()):
                try:
                    self._hook(*arguments)
                except Exception:
                    self._record_failure("on_evict %r failed on evicted items; statistics() counts its failures")

        unreported = sum(map(len, queue))
        if unreported:
            message = "on_evict %r puts items back into a full container without end; %d evicted items went unreported"
            self._record_failure(message, unreported)

    def _record_failure(self, message: str, *arguments: object) -> None:
        with _count_lock:
            self.failures += 1
        # One key, so that all failures of a hook share the rate limit.
        self._logger.error("on_evict", message, self._hook, *arguments)
