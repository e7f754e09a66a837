"""Say in the log what goes wrong with alerts themselves, the same thing at most once in five minutes.

Threads: safe; two that complain at the same moment may both be heard.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

_log = logging.getLogger("memtools.alerts")
_SPARED_S: Final = 300.0  # as the monitor repeats its warnings


class Complaints:
    """A log that does not repeat itself.

    Args:
        clock: seconds that never go back.
    """

    __slots__ = ("_clock", "_said_at")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def say(self, key: str, words: str, *arguments: object, error: BaseException | None = None) -> None:
        """Log a warning, unless one of this key was logged a short while ago.

        A logging handler that fails, or has no memory left, is none of the caller's business: nothing is raised.
        """
        try:
            now = self._clock()
            said_at = self._said_at.get(key)
            if said_at is not None and now - said_at < _SPARED_S:
                return
            self._said_at[key] = now
            _log.warning(words, *arguments, exc_info=error)
        except Exception:  # what else could be done with it: this is where failures are said
            return

    def withdraw(self, key: str, words: str, *arguments: object) -> None:
        """Log that it is over, if it was complained of; the next complaint is heard at once."""
        if self._said_at.pop(key, None) is None:
            return
        try:
            _log.info(words, *arguments)
        except Exception:  # as above
            return


# Leave out for a while what fails each time, and try it again now and then.
#
# Leaves to others: what counts as a failure.

_FAILURES = 5  # in a row
_RETRY_AFTER_S = 300.0


class Breaker:
    """Closed: it may be called. Open, after five failures in a row: not for five minutes. Then one trial decides.

    Times are seconds of a monotonic clock.
    """

    __slots__ = ("_in_a_row", "_retry_at")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._retry_at = float("-inf")

    def is_open(self, now: float) -> bool:
        """Whether to leave it out now."""
        return self._in_a_row >= _FAILURES and now < self._retry_at

    def succeeded(self) -> None:
        """A call went well."""
        self._in_a_row = 0

    def failed(self, now: float) -> None:
        """A call went wrong."""
        self._in_a_row += 1
        self._retry_at = now + _RETRY_AFTER_S


# Say the same thing at most once a minute.
#
# Leaves to others: what is said.

_EVERY_S = 60.0


class Seldom:
    """A log that speaks at most once a minute and adds how often it was silent in between.

    Call it where the exception is being handled: its traceback is logged.
    """

    __slots__ = ("_log", "_next_at", "_silent")

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next_at = float("-inf")
        self._silent = 0

    def failure(self, now: float, message: str, *names: object) -> None:
        """Log `message % names` with the exception, or count it."""
        if now < self._next_at:
            self._silent += 1
            return

        silent, self._silent = self._silent, 0
        self._next_at = now + _EVERY_S
        rest = f" ({silent} more since the last such message)" if silent else ""
        self._log.error(message + "%s", *names, rest, exc_info=True)
