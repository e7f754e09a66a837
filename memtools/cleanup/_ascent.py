"""One climb: step after step until usage is low enough, time has run out or the end is reached.

Covers: the order, the re-reads, what the climb amounts to.
Leaves to others: who may climb and when (`_ladder`), taking one step (`_taking`).
"""

from collections.abc import Callable, Generator, Iterator, Sequence

from memtools.cleanup._records import Climb, StepTaken
from memtools.cleanup._rung import Rung
from memtools.cleanup._taking import Taking
from memtools.cleanup._time_share import TimeShare
from memtools.readings import Level


class Ascent:
    """One climb, walked slice by slice; between two slices others may have their turn.

    Args:
        rungs: the steps, the cheapest first.
        level: how short memory is.
        stop_below: the exit, in bytes.
        read: returns what is in use, in bytes.
        share: what may be spent.
        clock: monotonic seconds.
        rest_s: how long the steps that are taken rest from now on, in seconds; one figure, so that they are ready again
            at the same time.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        level: Level,
        stop_below: int,
        *,
        read: Callable[[], int],
        share: TimeShare,
        clock: Callable[[], float],
        rest_s: float,
    ) -> None:
        self._rungs = [rung for rung in rungs if rung.step.least <= level]
        self._level = level
        self._stop_below = stop_below
        self._read = read
        self._share = share
        self._clock = clock
        self._taken: list[StepTaken] = []
        self._has_passed_all = False
        self._began_at = clock()
        self._rests_until = self._began_at + rest_s
        self._before_bytes = self._after_bytes = read()

    def slices(self) -> Generator[None, None, None]:
        """Climb; every turn of this iterator is one slice."""
        for rung in self._rungs:
            if self._is_below():
                return
            if rung.is_held(self._level, self._clock()):
                continue
            if self._left() <= 0:
                return
            yield from self._take(rung)
        self._has_passed_all = not any(rung.is_unfinished for rung in self._rungs)

    def outcome(self) -> Climb | None:
        """Return what the climb did; None where nothing was needed to be done and could not be."""
        is_effective = self._is_below()
        if not self._taken and not is_effective:
            return None
        return Climb(
            level=self._level,
            before_bytes=self._before_bytes,
            after_bytes=self._after_bytes,
            steps=tuple(self._taken),
            duration_s=self._clock() - self._began_at,
            is_effective=is_effective,
            reached_end=self._has_passed_all and not is_effective,
        )

    def _take(self, rung: Rung) -> Iterator[None]:
        taking = Taking(rung, self._level, self._share, self._clock)
        try:
            while taking.advance():
                # Allocators may hand pages back late: look again before more is given up than is needed.
                self._after_bytes = self._read()
                yield
                if self._is_below() or self._left() <= 0:
                    break
        finally:
            taking.close()
            self._end(rung, taking)

    def _end(self, rung: Rung, taking: Taking) -> None:
        taken = taking.outcome()
        if taken is None:
            return
        self._taken.append(taken)
        rung.is_unfinished = self._left() <= 0
        rung.rest(self._level, self._rests_until)

    def _is_below(self) -> bool:
        return self._after_bytes < self._stop_below

    def _left(self) -> float:
        return self._share.credit_s(self._clock())
