"""Circuit breaker, rate-limited log, and calls that can be abandoned.

For every function of the program or of another library that memtools calls: hooks, callbacks, actions, channels. A call
that fails, or never returns, must not harm memtools, and a report about it must not harm the program.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Final, Generic, TypeVar

from memtools._threads import OwnThread

T = TypeVar("T")

FAILURES_TO_OPEN: Final = 5
RETRY_AFTER_S: Final = 300.0


class CircuitBreaker:
    """Skip a call that failed several times in a row, and try it again after a while.

    Closed, the call may be made. After `failures` failures in a row the breaker is open for `retry_after_s` seconds;
    then one trial decides. Not thread-safe: the owner of the breaker serialises the calls.

    Args:
        failures: how many failures in a row open it.
        retry_after_s: seconds until the trial; infinite for never.

    Attributes:
        failures_in_a_row: the failures since the last success.
    """

    __slots__ = ("_failures", "_retry_after_s", "_retry_at", "failures_in_a_row")

    def __init__(self, failures: int = FAILURES_TO_OPEN, retry_after_s: float = RETRY_AFTER_S) -> None:
        self.failures_in_a_row = 0
        self._failures = failures
        self._retry_after_s = retry_after_s
        self._retry_at = float("-inf")

    def is_open(self, now: float) -> bool:
        """Return whether to skip the call at `now`, in seconds of a monotonic clock."""
        return self.failures_in_a_row >= self._failures and now < self._retry_at

    def record_success(self) -> None:
        """Close the breaker."""
        self.failures_in_a_row = 0

    def record_failure(self, now: float) -> None:
        """Count a failure; the last of `failures` in a row opens the breaker."""
        self.failures_in_a_row += 1
        self._retry_at = now + self._retry_after_s


class RateLimitedLogger:
    """Log the same problem at most once per interval, and say how many messages were suppressed in between.

    Nothing is ever raised: a logging handler that fails, or has no memory left, must not break the code that reports a
    problem. Thread-safe; two threads that report the same problem at the same moment may both be logged.

    Args:
        log: the logger.
        interval_s: seconds between two messages of one key.
        clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_interval_s", "_last", "_log")

    def __init__(
        self, log: logging.Logger, *, interval_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._interval_s = interval_s
        self._clock = clock
        self._last: dict[object, list[float]] = {}  # key: when it was logged, how many were suppressed since

    def error(self, key: object, message: str, *arguments: object, error: BaseException | None = None) -> bool:
        """Log an error with the traceback of `error`, by default the handled one; return whether it was logged."""
        return self._report(logging.ERROR, key, message, arguments, error or sys.exception())

    def warning(self, key: object, message: str, *arguments: object, error: BaseException | None = None) -> bool:
        """Log a warning, with the traceback of `error` if one is given; return whether it was logged."""
        return self._report(logging.WARNING, key, message, arguments, error)

    def resolved(self, key: object, message: str, *arguments: object) -> None:
        """Log that the problem is over, if it was logged; the next report of it is logged at once."""
        if self._last.pop(key, None) is None:
            return
        try:
            self._log.info(message, *arguments)
        except Exception:  # as in `_report`
            return

    def _report(
        self, level: int, key: object, message: str, arguments: tuple[object, ...], error: BaseException | None
    ) -> bool:
        try:
            now = self._clock()
            last = self._last.get(key)
            if last is not None and now - last[0] < self._interval_s:
                last[1] += 1
                return False
            suppressed = 0 if last is None else int(last[1])
            self._last[key] = [now, 0]
            rest = f" ({suppressed} more since the last such message)" if suppressed else ""
            self._log.log(level, message + "%s", *arguments, rest, exc_info=error)
        except Exception:  # problems are reported here: there is no other place to report this one to
            return False
        return True


class AbandonableCall(Generic[T]):
    """A call in a daemon thread of its own, which the caller can stop waiting for.

    A plain function cannot be interrupted from outside, so a late call is abandoned: its thread runs on, and its result
    or exception is dropped. Whether the call ended in time or was abandoned is decided once, by a lock: `abandon`
    returns True only if the call has not ended yet.

    Args:
        function: called without arguments.
        name: the name of the thread.
        on_late_end: called in the thread when the call ends after it was abandoned.

    Attributes:
        thread: the thread; None before `start`.
        value: what the call returned; None before its end, and if it was abandoned.
        error: what the call raised; None before its end, and if it was abandoned.
    """

    __slots__ = ("_ended", "_function", "_name", "_on_late_end", "_outcome", "error", "thread", "value")

    def __init__(
        self, function: Callable[[], T], *, name: str, on_late_end: Callable[[], object] | None = None
    ) -> None:
        self._function = function
        self._name = name
        self._on_late_end = on_late_end
        self._outcome = threading.Lock()  # taken, and never released, by the first of end and abandonment
        self._ended = threading.Event()
        self.thread: threading.Thread | None = None
        self.value: T | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: when no thread can be started; nothing has run then.
            MemoryError: the same.
        """
        self.thread = OwnThread(target=self.run, name=self._name, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Make the call in the calling thread; `start` has it made in a thread of its own."""
        try:
            self.value = self._function()
        except BaseException as error:  # `result` raises it in the thread that waits
            self.error = error
        in_time = self._outcome.acquire(blocking=False)
        self._ended.set()
        if not in_time:
            self.value = self.error = None
            if self._on_late_end is not None:
                self._on_late_end()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; return whether the call has ended."""
        return self._ended.wait(max(timeout, 0.0))

    def abandon(self) -> bool:
        """Stop waiting for the call; return False where it has just ended, so that its result counts."""
        return self._outcome.acquire(blocking=False)

    def result(self, timeout: float) -> T:
        """Return what the call returned, or raise what it raised.

        Raises:
            TimeoutError: when it has not ended after `timeout` seconds; it is abandoned then.
        """
        if not self.wait(timeout) and self.abandon():
            raise TimeoutError(f"{self._name} has not ended after {timeout:g} s; its thread was abandoned")
        self._ended.wait()
        try:
            if self.error is not None:
                raise self.error
            return self.value  # type: ignore[return-value]  # of type T once the call has ended without an error
        finally:
            self.error = None  # the traceback holds this frame: without this the two would keep each other alive


def strip_own_frames(trace: TracebackType | None, is_own: Callable[[CodeType], bool]) -> TracebackType | None:
    """Return `trace` without its first frames whose code `is_own`: what the caller would see without them."""
    while trace is not None and is_own(trace.tb_frame.f_code):
        trace = trace.tb_next
    return trace
