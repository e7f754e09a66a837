"""Give memory back, step by step, the cheapest first, and never for longer than a small share of wall time.

Covers: who may climb and when, the loop's turn between two slices, telling that it was done.
Leaves to others: the level and the exit, and what to do when a climb was not enough (`memtools.monitor`), what each
step does (`_trim`, `_collect`, `_trim_heap`, the user).
"""

import asyncio
import random as _random
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

from memtools.cleanup._ascent import Ascent
from memtools.cleanup._records import Climb, LadderStatistics
from memtools.cleanup._rung import Rung
from memtools.cleanup._step import Step
from memtools.cleanup._time_share import TimeShare
from memtools.cleanup._trim import TrimRegistered
from memtools.errors import ConfigError
from memtools.events import CleanupEnded, emit
from memtools.forks import renew_in_children
from memtools.readings import Level
from memtools.units import parse_seconds

_JITTER = 0.2  # of the cooldown, so that the processes of one machine do not clean up in step


class Ladder:
    """Steps that give memory back, taken one after the other until usage is low enough.

    >>> from memtools.cleanup import Ladder, default_steps
    >>> from memtools.readings import Level, resident_bytes
    >>> ladder = Ladder(default_steps(), read=resident_bytes)
    >>> climb = ladder.climb(Level.WARNING, stop_below=resident_bytes() + 1)
    >>> climb.is_effective, climb.steps
    (True, ())

    Args:
        steps: what is done, the cheapest first; those whose `least` is above the level are passed over.
        read: returns what is in use, in bytes; asked before the first step and after each slice.
        share: of wall time, the most that all steps together take.
        cooldown: seconds for which a step rests from the beginning of the climb in which it was taken, and up to a
            fifth more by chance. A higher level does not wait.
        clock: monotonic seconds.
        random: returns a number from 0 to 1.

    Raises:
        ConfigError: for an argument that makes no sense.

    Threads: safe; while one climbs, the others get None. Fork: a child may climb at once, whoever was climbing.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        read: Callable[[], int],
        share: float = 0.05,
        cooldown: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._rungs = tuple(Rung(_checked(step)) for step in steps)
        self._read = read
        self._share = TimeShare(_parse_share(share), clock())
        self._cooldown_s = parse_seconds(cooldown, name="cooldown")
        self._clock = clock
        self._random = random
        self._climbs = 0
        self._effective = 0
        self._held_back = 0
        self._lock = threading.Lock()
        renew_in_children(self, Ladder._renew_after_fork)

    def climb(self, level: Level, stop_below: int) -> Climb | None:
        """Take the steps of `level` until less than `stop_below` bytes are in use.

        `CleanupEnded` is told, unless there was nothing to do.

        Returns:
            What was done; None where it was held back: another climb is going on, every step was taken a moment ago,
            or the share of wall time is used up.

        Raises:
            ReadingError: what `read` raises.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._held_back += 1
            return None

        try:
            ascent = self._ascent(level, stop_below)
            for _ in ascent.slices():
                pass
        finally:
            lock.release()
        return self._told(ascent)

    async def climb_async(self, level: Level, stop_below: int) -> Climb | None:
        """Do as `climb` does, in slices; between two of them the loop has its turn.

        A full collection, a heap trim and a step of the user are one slice each.

        Returns:
            As `climb`.

        Raises:
            ReadingError: what `read` raises.
        """
        lock = self._lock
        if not lock.acquire(blocking=False):
            self._held_back += 1
            return None

        try:
            ascent = self._ascent(level, stop_below)
            slices = ascent.slices()
            try:
                for _ in slices:
                    await asyncio.sleep(0)
            finally:
                slices.close()  # a climb that was cancelled ends here, not when somebody collects it
        finally:
            lock.release()
        return self._told(ascent)

    def statistics(self) -> LadderStatistics:
        """Return how the ladder and its steps fared so far."""
        now = self._clock()
        steps = tuple(rung.statistics(now) for rung in self._rungs)
        trims = (rung.step for rung in self._rungs if isinstance(rung.step, TrimRegistered))
        trim = next(trims, None)
        return LadderStatistics(
            climbs=self._climbs,
            effective=self._effective,
            held_back=self._held_back,
            freed_bytes=sum(step.freed_bytes for step in steps),
            spent_s=self._share.spent_s,
            credit_s=max(self._share.credit_s(now), 0.0),
            steps=steps,
            trim=None if trim is None else trim.statistics(),
        )

    def _ascent(self, level: Level, stop_below: int) -> Ascent:
        return Ascent(
            self._rungs,
            level,
            stop_below,
            read=self._read,
            share=self._share,
            clock=self._clock,
            rest_s=self._cooldown_s * (1 + _JITTER * self._random()),
        )

    def _told(self, ascent: Ascent) -> Climb | None:
        climb = ascent.outcome()
        if climb is None:
            self._held_back += 1
            return None

        self._climbs += 1
        self._effective += climb.is_effective
        if climb.steps:
            steps = tuple((step.name, step.freed_bytes, step.duration_s) for step in climb.steps)
            emit(CleanupEnded(climb.level, climb.before_bytes, climb.after_bytes, steps, climb.duration_s))
        return climb

    def _renew_after_fork(self) -> None:
        # Held for ever, if another thread was climbing. Whoever forked in the middle of a climb releases the old one.
        self._lock = threading.Lock()


def _parse_share(share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigError("share", share, "a share of wall time above 0 and up to 1, such as 0.05")
    return float(share)


def _checked(step: object) -> Step:
    is_step = callable(step) and isinstance(getattr(step, "name", None), str)
    if not is_step or not isinstance(getattr(step, "least", None), Level):
        accepted = "steps, each a callable (level, deadline) -> bytes given back with a name and a least level"
        raise ConfigError("steps", step, accepted)
    return cast("Step", step)
