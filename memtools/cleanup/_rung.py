"""One step's place on the ladder: when it may be taken again, and how it fared.

Covers: the cooldown, the circuit breaker, the figures of all climbs.
Leaves to others: taking it (`_taking`).
"""

import logging

from memtools.cleanup._breaker import Breaker
from memtools.cleanup._records import StepStatistics
from memtools.cleanup._seldom import Seldom
from memtools.cleanup._step import Step
from memtools.readings import Level

_log = logging.getLogger("memtools.cleanup")


class Rung:
    """A step on one ladder. Times are seconds of the ladder's clock.

    Attributes:
        step: what is done here.
        is_unfinished: whether time ran out when it was last taken.
    """

    __slots__ = (
        "_breaker",
        "_failures",
        "_freed_bytes",
        "_longest_s",
        "_overruns",
        "_rests_until",
        "_seldom",
        "_spent_s",
        "_taken",
        "_taken_at_level",
        "is_unfinished",
        "step",
    )

    def __init__(self, step: Step) -> None:
        self.step = step
        self.is_unfinished = False
        self._breaker = Breaker()
        self._seldom = Seldom(_log)
        self._rests_until = float("-inf")
        self._taken_at_level = Level.NORMAL
        self._taken = 0
        self._freed_bytes = 0
        self._spent_s = 0.0
        self._longest_s = 0.0
        self._failures = 0
        self._overruns = 0

    def is_held(self, level: Level, now: float) -> bool:
        """Whether it must not be taken now: it was a moment ago at this level or a higher one, or it keeps failing."""
        is_resting = now < self._rests_until and level <= self._taken_at_level
        return is_resting or self._breaker.is_open(now)

    def rest(self, level: Level, until: float) -> None:
        """Not be taken again at `level`, or at a lower one, before `until`."""
        self._taken_at_level = level
        self._rests_until = until

    def count_slice(self, freed_bytes: int, took_s: float, *, is_first: bool) -> None:
        """Add what one slice did."""
        self._taken += is_first
        self._freed_bytes += freed_bytes
        self._spent_s += took_s
        self._longest_s = max(self._longest_s, took_s)

    def count_overrun(self) -> None:
        """Add a call that returned late."""
        self._overruns += 1

    def succeeded(self) -> None:
        """Close the circuit breaker."""
        self._breaker.succeeded()

    def failed(self, now: float) -> None:
        """Log the exception that is being handled, now and then, and count it."""
        self._failures += 1
        self._breaker.failed(now)
        self._seldom.failure(now, "clean-up step %r failed; the ladder goes on", _name(self.step))

    def statistics(self, now: float) -> StepStatistics:
        """Return how the step fared."""
        return StepStatistics(
            name=_name(self.step),
            taken=self._taken,
            freed_bytes=self._freed_bytes,
            spent_s=self._spent_s,
            longest_slice_s=self._longest_s,
            failures=self._failures,
            overruns=self._overruns,
            is_left_out=self._breaker.is_open(now),
        )


def _name(step: Step) -> str:
    return str(step.name)
