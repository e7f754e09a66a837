"""Alerts at work in one process: from the fact that is heard to those who deliver and act.

Covers: judging facts one at a time without ever waiting for anybody.
Leaves to others: what is open (`_board`), delivering (`_postman`), acting (`_actions`), when all this begins and ends
(`_alerts`).

Threads: `hear` may be called from any thread, and in a finaliser in the middle of itself. Whoever comes first judges
what the others bring meanwhile; nobody waits.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from memtools.alerts._actions import Actions
from memtools.alerts._board import Board, Decision, Notify
from memtools.alerts._deadline import Deadline
from memtools.alerts._postman import Postman
from memtools.alerts._signals import signals_of
from memtools.alerts._statistics import AlertStatistics
from memtools.events import Event


class Session:
    """Joins a board to those who carry out what it decides.

    Args:
        board: what is open.
        actions: who acts.
        hire: makes the postman, given the beat that it has to keep.
    """

    def __init__(self, board: Board, actions: Actions, hire: Callable[[Callable[[float], float]], Postman]) -> None:
        self._board = board
        self._actions = actions
        self._postman = hire(self._beat)
        self._heard: deque[Event | None] = deque()
        self._judging = threading.Lock()
        self._count = self._told = 0
        self._next_expiry: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a thread of this session runs."""
        return self._postman.is_alive or self._actions.is_alive

    def start(self, *, acting: bool) -> None:
        """Start the threads: the postman's, and that for actions if there are any."""
        self._postman.start()
        if acting:
            self._actions.start()

    def hear(self, event: Event) -> None:
        """Take a fact of a kind that alerts are about."""
        self._take(event)

    def ask_to_end(self, deadline: Deadline) -> None:
        """Have the threads end once all is done, or at the deadline."""
        self._actions.ask_to_end()
        self._postman.ask_to_end(deadline)

    def end(self, deadline: Deadline) -> None:
        """Wait for the threads to end, at most until the deadline."""
        self._actions.end(deadline)
        self._postman.end(deadline)

    def statistics(self) -> AlertStatistics:
        """Return how alerts fared."""
        actions = self._actions
        return AlertStatistics(
            open_incidents=self._board.open_incidents,
            heard=self._count,
            told=self._told,
            actions_run=actions.run,
            actions_failed=actions.failed,
            actions_skipped=actions.skipped,
            channels=self._postman.statistics(),
        )

    def _take(self, event: Event | None) -> None:
        self._heard.append(event)
        # Asked again after the lock is given back: somebody may have brought a fact just before.
        while self._heard and self._judging.acquire(blocking=False):
            try:
                while self._heard:
                    self._judge(self._heard.popleft())
            finally:
                self._judging.release()

    def _judge(self, event: Event | None) -> None:
        now = time.monotonic()
        if self._next_expiry is not None and now >= self._next_expiry:
            self._carry_out(self._board.expire(now))
        if event is not None:
            self._count += 1
            for signal in signals_of(event):
                self._carry_out(self._board.feel(signal, now))
        before, self._next_expiry = self._next_expiry, self._board.next_expiry()
        if before is None and self._next_expiry is not None:
            self._postman.wake()

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Notify):
                self._told += 1
                self._postman.post(decision.target, decision.alert)
            else:
                self._actions.post(decision)
                self._postman.wake()  # who looks after it

    def _beat(self, now: float) -> float:
        # Called by the postman between deliveries.
        self._actions.look_after()
        expiry = self._next_expiry
        if expiry is not None and now >= expiry:
            self._take(None)
            expiry = self._next_expiry
        late = self._actions.late_at()
        return min(expiry if expiry is not None else float("inf"), late)
