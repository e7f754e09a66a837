"""Decide what is done at a level: log, events, callbacks, the ladder, light clean-up, and what comes after the ladder.

Covers: the order of it all, what is said once and what is repeated. Leaves to others: readings and levels
(`_lookout`), running callbacks and climbing (`_doing`), the steps (`memtools.cleanup`).

The decision is a generator of effects: a thread and a loop carry them out in their own ways, from the same source.
"""

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from math import inf
from typing import Final

from memtools.cleanup import Climb
from memtools.events import CleanupEnded, LevelChanged, PressureFelt, ReadingTaken, ReclaimIneffective, emit, is_heard
from memtools.monitor._callbacks import Moment
from memtools.monitor._effects import Ascend, Effect, Tell
from memtools.monitor._holders import largest_owners
from memtools.monitor._lookout import Look, Lookout
from memtools.readings import Level
from memtools.units import format_size

REPEAT_LOG_S: Final = 300.0
PRESSURE_EVERY_S: Final = 15.0  # light clean-ups for the kernel's sake
_MOMENTS: Final[dict[Level, Moment]] = {
    Level.NORMAL: "normal",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
}

_log = logging.getLogger("memtools.monitor")

Response = Generator[Effect, Climb | None, None]


class Relief:
    """What was decided so far, and what is next.

    Args:
        lookout: looks again after the ladder.
        used: bytes in use, for clean-ups that are no climb.
        clock: monotonic seconds.
        cleanup_interval_s: seconds between light clean-ups; 0 for none.
        name: the monitor's name, for the log.
    """

    def __init__(
        self,
        lookout: Lookout,
        used: Callable[[], int],
        clock: Callable[[], float],
        *,
        cleanup_interval_s: float,
        name: str,
    ) -> None:
        self._lookout = lookout
        self._used = used
        self._clock = clock
        self._interval_s = cleanup_interval_s
        self._name = name
        self._untold: deque[Look] = deque(maxlen=64)
        self._responding = threading.Lock()  # never waited for
        self._light_at = clock() + cleanup_interval_s if cleanup_interval_s else inf
        self._light_for_pressure_at = -inf
        self._log_again_at = -inf
        self._is_told_in_vain = False
        self._is_exhausted = False
        self.cleanups = self.light_cleanups = self.freed_bytes = self.in_vain = self.pressure_signals = 0
        self.cleanup_s = 0.0

    def note(self, look: Look) -> bool:
        """Take a look into account; return whether there is something to respond to."""
        if look.before != look.after:
            self._untold.append(look)
        if is_heard():
            emit(ReadingTaken(look.reading, look.after))
        return bool(self._untold) or look.is_short

    def note_pressure(self, source: str) -> None:
        """Take a signal of pressure into account: the next response cleans up lightly."""
        self.pressure_signals += 1
        emit(PressureFelt(source))
        now = self._clock()
        if now >= self._light_for_pressure_at:
            self._light_for_pressure_at = now + PRESSURE_EVERY_S
            self._light_at = now

    def seconds_to_light(self) -> float:
        """Return the seconds until the next light clean-up; infinite for none."""
        return self._light_at - self._clock()

    def respond(self, look: Look | None) -> Response:
        """Yield what is to be done about `look`, the newest; nothing while another response is going on."""
        if not self._responding.acquire(blocking=False):
            return
        try:
            while self._untold:
                yield from self._change(self._untold.popleft())
            if look is not None and look.is_short:
                yield from self._relieve(look)
            elif self._clock() >= self._light_at:
                self._clean_lightly()
        finally:
            # Another lock by now, if this process was forked in the middle: then nobody holds it.
            with suppress(RuntimeError):
                self._responding.release()

    def renew_lock(self) -> None:
        """Forget a response that was going on: in a forked child nobody ends it."""
        self._responding = threading.Lock()

    def _change(self, look: Look) -> Response:
        change = LevelChanged(look.before, look.after, look.reading, look.threshold_bytes)
        self._log_again_at = self._clock() + REPEAT_LOG_S
        if look.after < look.before:
            self._is_told_in_vain = self._is_exhausted = False
        _log_change(self._name, change)
        emit(change)
        yield Tell(_MOMENTS[look.after], change)

    def _relieve(self, look: Look) -> Response:
        self._log_again(look)
        climb = yield Ascend(look.after, look.exit_bytes)
        if climb is None:
            return

        self._note_climb(climb)
        if not climb.reached_end:
            return
        again = self._lookout.look(waits=True)
        if again is not None and self.note(again) and again.is_short:
            yield from self._give_up(again)

    def _note_climb(self, climb: Climb) -> None:
        self.cleanups += 1
        self.cleanup_s += climb.duration_s
        self.freed_bytes += max(0, climb.before_bytes - climb.after_bytes)

    def _give_up(self, look: Look) -> Response:
        used = look.reading.used_bytes
        fact = ReclaimIneffective(look.after, used, look.exit_bytes, largest_owners(3))
        if not self._is_told_in_vain:
            self._is_told_in_vain = True
            self.in_vain += 1
            _log_in_vain(self._name, fact)
            emit(fact)
        if look.after is Level.CRITICAL and not self._is_exhausted:
            self._is_exhausted = True
            yield Tell("recycle", None)
            yield Tell("exhausted", fact)

    def _clean_lightly(self) -> None:
        began = self._clock()
        self._light_at = began + self._interval_s if self._interval_s else inf
        before = self._used_or_zero()
        gc.collect(0)
        self.light_cleanups += 1
        duration_s = self._clock() - began
        self.cleanup_s += duration_s
        if is_heard():
            after = self._used_or_zero()
            steps = (("collect the youngest", max(0, before - after), duration_s),)
            emit(CleanupEnded(self._lookout.level, before, after, steps, duration_s))

    def _used_or_zero(self) -> int:
        try:
            return self._used()
        except OSError:
            return 0

    def _log_again(self, look: Look) -> None:
        now = self._clock()
        if now < self._log_again_at:
            return
        self._log_again_at = now + REPEAT_LOG_S
        words = "%s: memory is still %s: %s; back to the level below under %s"
        _log.warning(words, self._name, look.after.name, look.reading, format_size(look.exit_bytes))


def _log_change(name: str, change: LevelChanged) -> None:
    urgency = {Level.NORMAL: logging.INFO, Level.WARNING: logging.WARNING, Level.CRITICAL: logging.ERROR}
    words = "%s: memory is %s, it was %s: %s, threshold %s"
    threshold = format_size(change.threshold_bytes)
    _log.log(urgency[change.after], words, name, change.after.name, change.before.name, change.reading, threshold)


def _log_in_vain(name: str, fact: ReclaimIneffective) -> None:
    owners = ", ".join(f"{owner} {format_size(size)}" for owner, size in fact.largest) or "nobody known"
    _log.error(
        "%s: everything was tried, and %s are still in use (%s wanted); most is held by %s: see monitor.report()",
        name, format_size(fact.used_bytes), format_size(fact.target_bytes), owners,
    )  # fmt: skip
