"""Say the same thing at most once a minute.

Leaves to others: what is said.
"""

import logging

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
