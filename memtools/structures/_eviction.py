"""Tell a hook which items had to go; a hook that fails is logged now and then and counted, never raised.

Covers: isolation of the hook, evictions that the hook itself causes, the rate limit of the log.
Leaves to others: what goes and when (`_window`).
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Any, Generic, TypeVar

# Items may be of any type; the list that owns the hook has the type to offer.
OnEvict = Callable[[list[Any]], object]

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


# Tell the user what the strong tier let go; a hook that breaks is logged now and then and counted, never raised.
#
# Covers: isolation of the hook, evictions that the hook itself causes, the rate limit of the log.
# Leaves to others: when an entry goes (`_tier`).

K = TypeVar("K")
V = TypeVar("V")

_QUIET_S = 60.0  # between two reports of one cache


class EvictionHook(Generic[K, V]):
    """The user's `on_evict`, made harmless. `KeyboardInterrupt`, `SystemExit` and cancellation pass.

    Threads: each thread tells what it let go itself, at once; several may be in the hook at the same time.
    """

    __slots__ = ("_call", "_queues", "_report_after", "failures")

    def __init__(self, call: Callable[[K, V], object] | None) -> None:
        self._call = call
        self._queues: dict[int, deque[dict[K, V]]] = {}  # of the threads that are in the hook
        self._report_after = 0.0
        self.failures = 0

    def tell(self, gone: dict[K, V]) -> None:
        """Call the hook for each entry, in the order given; from inside the hook, when it has returned."""
        if self._call is None or not gone:
            return
        me = get_ident()
        queue = self._queues.get(me)
        if queue is not None:
            queue.append(gone)
            return

        self._queues[me] = queue = deque([gone])
        try:
            self._tell_in_turn(queue, self._call)
        finally:
            del self._queues[me]

    def forget_other_threads(self) -> None:
        """Forget who was in the hook; for a child process, in which they are not."""
        me = get_ident()
        self._queues = {me: self._queues[me]} if me in self._queues else {}

    def _tell_in_turn(self, queue: deque[dict[K, V]], call: Callable[[K, V], object]) -> None:
        for _ in range(_ROUNDS):
            if not queue:
                return
            for key, value in queue.popleft().items():
                try:
                    call(key, value)
                except Exception:
                    if self._counts_and_may_report():
                        _log.exception("on_evict %r failed; the cache goes on, later failures are counted", call)

        untold = sum(map(len, queue))
        if untold and self._counts_and_may_report():
            _log.error("on_evict %r puts entries back into its full cache without end; %d go untold", call, untold)

    def _counts_and_may_report(self) -> bool:
        self.failures += 1
        now = time.monotonic()
        if now < self._report_after:
            return False
        self._report_after = now + _QUIET_S
        return True
