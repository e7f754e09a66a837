"""Take one step, slice by slice; whatever it raises harms nobody.

Leaves to others: which step comes next (`_ascent`), when it may come again (`_rung`).
"""

from collections.abc import Callable, Generator

from memtools.cleanup._records import StepTaken
from memtools.cleanup._rung import Rung
from memtools.cleanup._step import SlicedStep, Step, known_bytes
from memtools.cleanup._time_share import TimeShare
from memtools.readings import Level

_GRACE_S = 0.05  # a thread that waits for the GIL may be that late without being slow


class Taking:
    """One step of one climb.

    Args:
        rung: the step, its breaker and its figures.
        level: how short memory is.
        share: what may be spent, and is spent.
        clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_duration_s", "_freed_bytes", "_rung", "_share", "_slices", "_taken")

    def __init__(self, rung: Rung, level: Level, share: TimeShare, clock: Callable[[], float]) -> None:
        self._rung = rung
        self._share = share
        self._clock = clock
        self._taken = 0
        self._freed_bytes = 0
        self._duration_s = 0.0
        self._slices = self._slices_of(rung.step, level)

    def advance(self) -> bool:
        """Do one slice; return whether there was one to do."""
        began = self._clock()
        freed_bytes = self._next()
        took_s = self._clock() - began

        # To find that there was nothing to do takes its time as well.
        self._duration_s += took_s
        self._share.spend(took_s)
        if freed_bytes is None:
            self._rung.count_slice(0, took_s, is_first=False)
            return False
        self._rung.count_slice(freed_bytes, took_s, is_first=not self._taken)
        self._freed_bytes += freed_bytes
        self._taken += 1
        return True

    def close(self) -> None:
        """Leave it as it stands, in the middle or at its end."""
        try:
            self._slices.close()
        except Exception:
            self._rung.failed(self._clock())

    def outcome(self) -> StepTaken | None:
        """Return what the step did; None where it had nothing to do."""
        if not self._taken:
            return None
        return StepTaken(str(self._rung.step.name), self._freed_bytes, self._duration_s)

    def _next(self) -> int | None:
        try:
            return known_bytes(next(self._slices))
        except StopIteration:
            if self._taken:
                self._rung.succeeded()
        except Exception:
            self._taken += 1
            self._rung.failed(self._clock())
        return None

    def _slices_of(self, step: Step, level: Level) -> Generator[int, None, None]:
        if isinstance(step, SlicedStep):
            yield from step.slices(level, self._left)
            return

        deadline = self._clock() + self._left()
        freed_bytes = step(level, deadline)
        if self._clock() > deadline + _GRACE_S:
            self._rung.count_overrun()
        yield freed_bytes

    def _left(self) -> float:
        return self._share.credit_s(self._clock())
