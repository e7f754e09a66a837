"""Tell a hook which items had to go; a hook that fails is logged now and then and counted, never raised.

Covers: isolation of the hook, evictions that the hook itself causes, the rate limit of the log.
Leaves to others: what goes and when (`_window`).
"""

import logging
from collections import deque
from time import monotonic
from typing import Any

from memtools.structures._list_bounds import OnEvict

# A hook that puts items back causes evictions of its own. They are told in turn, not nested; one that puts something
# back each time would never come to an end.
_ROUNDS = 100
_LOG_EVERY_S = 60.0

_log = logging.getLogger("memtools.structures")


class Eviction:
    """One list's hook, and how it fared."""

    __slots__ = ("_hook", "_is_telling", "_next_log_at", "_waiting", "failures")

    def __init__(self, hook: OnEvict) -> None:
        self._hook = hook
        self._waiting: deque[list[Any]] = deque()
        self._is_telling = False
        self._next_log_at = float("-inf")
        self.failures = 0

    def tell(self, gone: list[Any]) -> None:
        """Call the hook with `gone`, now or, from inside the hook, when it has returned."""
        self._waiting.append(gone)
        if self._is_telling:
            return

        self._is_telling = True
        try:
            for _ in range(_ROUNDS):
                if not self._waiting:
                    return
                self._call(self._waiting.popleft())
            if self._waiting:
                self._give_up()
        finally:
            self._is_telling = False

    def _call(self, gone: list[Any]) -> None:
        try:
            self._hook(gone)
        except Exception:
            self.failures += 1
            if self._may_log():
                _log.exception("on_evict %r failed on %d items; the list goes on", self._hook, len(gone))

    def _give_up(self) -> None:
        untold = sum(map(len, self._waiting))
        self._waiting.clear()
        self.failures += 1
        if self._may_log():
            _log.error(
                "on_evict %r puts items back into its full list without end; %d items went untold", self._hook, untold
            )

    def _may_log(self) -> bool:
        now = monotonic()
        if now < self._next_log_at:
            return False
        self._next_log_at = now + _LOG_EVERY_S
        return True
