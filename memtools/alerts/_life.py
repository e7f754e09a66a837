"""The life of an alert: it opens, escalates, repeats after a cooldown, resolves.

A state machine without a clock: it is told how serious things are, and when. It speaks at edges only.
Leaves to others: what makes things serious (`_board`), what is done then (`_outbox`, `_actions`).

    closed --level--> OPENED --higher level--> ESCALATED
                        |  `--the same or lower, after the cooldown--> REPEATED, with the count of what was swallowed
                        `--normal--> RESOLVED
"""

from memtools.alerts._alert import AlertKind
from memtools.readings import Level
from memtools.records import record


@record
class Step:
    """What is to be told now.

    Attributes:
        kind: where in its life the alert stands.
        level: how serious it is; of a resolved one, what was told last.
        swallowed: how often it was felt since the last step, and not told.
        number: 1 for the first step of a life, and so on.
    """

    kind: AlertKind
    level: Level
    swallowed: int
    number: int


class Life:
    """One alert for one receiver.

    Args:
        cooldown_s: how long to swallow what is no news, in seconds.
    """

    __slots__ = ("_cooldown_s", "_number", "_swallowed", "_told", "_told_at")

    def __init__(self, cooldown_s: float) -> None:
        self._cooldown_s = cooldown_s
        self._told = Level.NORMAL
        self._told_at = 0.0
        self._swallowed = 0
        self._number = 0

    @property
    def is_open(self) -> bool:
        """Whether it was told and has not been resolved."""
        return self._told is not Level.NORMAL

    def feel(self, level: Level, at: float) -> Step | None:
        """Take how serious things are at `at` (seconds, never backwards); return what is to be told, if anything."""
        if level is Level.NORMAL:
            return self._close() if self.is_open else None
        if not self.is_open:
            return self._tell(AlertKind.OPENED, level, at)
        if level > self._told:
            return self._tell(AlertKind.ESCALATED, level, at)
        if at - self._told_at >= self._cooldown_s:
            return self._tell(AlertKind.REPEATED, level, at)

        self._swallowed += 1
        return None

    def _tell(self, kind: AlertKind, level: Level, at: float) -> Step:
        self._number += 1
        step = Step(kind, level, self._swallowed, self._number)
        self._told, self._told_at, self._swallowed = level, at, 0
        return step

    def _close(self) -> Step:
        step = Step(AlertKind.RESOLVED, self._told, self._swallowed, self._number + 1)
        self._told, self._swallowed, self._number = Level.NORMAL, 0, 0
        return step
