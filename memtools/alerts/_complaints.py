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
