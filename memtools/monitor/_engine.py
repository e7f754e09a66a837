"""Everything that a monitor does, whoever looks: operations, the beat, `check()`.

Covers: who acts on a look, faults of our own, a new beginning in a forked child, threads that could not start.
Leaves to others: the parts themselves. `MemoryMonitor` is the face of this; it may be dropped while a beat still runs,
which is how its finaliser can tell.
"""

import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from memtools._records import record
from memtools.cleanup import Reclaimer, ReclaimResult
from memtools.events import (
    CleanupEnded,
    LevelChanged,
    MemorySampled,
    PressureSignal,
    ReclaimIneffective,
    emit,
    has_listeners,
)
from memtools.monitor._admission import AdmissionRow
from memtools.monitor._callbacks import Callback, Callbacks, Caller, Moment
from memtools.monitor._levels import Marks
from memtools.monitor._loops import PressureWatch, ThreadBeat, open_watch
from memtools.monitor._report import largest_owners
from memtools.monitor._sampler import Look, Lookout, MemorySource
from memtools.monitor._statistics import MonitorStatistics, Operations, PauseMeter
from memtools.readings import Level, Reading
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.monitor._loops import TaskBeat


# What is to be done, said as plain records, so that a thread and a loop can do it each in its own way.
#
# Leaves to others: deciding it (`_relief`), doing it (`_doing`).


@record
class Tell:
    """Call the callbacks of a moment.

    Attributes:
        moment: which.
        fact: the record that they take; None for `"recycle"`, which takes nothing.
    """

    moment: Moment
    fact: object


@record
class Ascend:
    """Climb the ladder.

    Attributes:
        level: how short memory is.
        stop_below: the use at which to stop, in bytes.
    """

    level: Level
    stop_below: int


Effect: TypeAlias = Tell | Ascend


# Decide what is done at a level: log, events, callbacks, the ladder, light clean-up, and what comes after the ladder.
#
# Covers: the order of it all, what is said once and what is repeated. Leaves to others: readings and levels
# (`_lookout`), running callbacks and climbing (`_doing`), the steps (`memtools.cleanup`).
#
# The decision is a generator of effects: a thread and a loop carry them out in their own ways, from the same source.

REPEAT_LOG_S: Final = 300.0
PRESSURE_EVERY_S: Final = 15.0  # light clean-ups for the kernel's sake
_MOMENTS: Final[dict[Level, Moment]] = {
    Level.NORMAL: "normal",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
}

_log = logging.getLogger("memtools.monitor")

Response = Generator[Effect, ReclaimResult | None, None]


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
        self.cleanups = self.minor_collections = self.freed_bytes = self.in_vain = self.pressure_signals = 0
        self.cleanup_s = 0.0

    def note(self, look: Look) -> bool:
        """Take a look into account; return whether there is something to respond to."""
        if look.before != look.after:
            self._untold.append(look)
        if has_listeners():
            emit(MemorySampled(look.reading, look.after))
        return bool(self._untold) or look.is_short

    def note_pressure(self, source: str) -> None:
        """Take a signal of pressure into account: the next response cleans up lightly."""
        self.pressure_signals += 1
        emit(PressureSignal(source))
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
        if not climb.exhausted:
            return
        again = self._lookout.look(waits=True)
        if again is not None and self.note(again) and again.is_short:
            yield from self._give_up(again)

    def _note_climb(self, climb: ReclaimResult) -> None:
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
        self.minor_collections += 1
        duration_s = self._clock() - began
        self.cleanup_s += duration_s
        if has_listeners():
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


# Carry out what was decided, here and now or on a loop.
#
# Leaves to others: deciding it (`_relief`), the ladder (`memtools.cleanup`), running one callback (`_calling`).


class Doer:
    """Does what a response asks for; what goes wrong in a callback stays there."""

    def __init__(self, ladder: Reclaimer, callbacks: Callbacks, caller: Caller) -> None:
        self._ladder = ladder
        self._callbacks = callbacks
        self._caller = caller

    def carry_out(self, response: Response, *, aside: bool = False) -> None:
        """Do it all before returning; callbacks `aside` in threads of their own, with a time limit."""
        answer: ReclaimResult | None = None
        try:
            while (effect := _next(response, answer)) is not None:
                answer = None
                if isinstance(effect, Ascend):
                    answer = self._climb(effect)
                    continue
                for callback, argument in self._calls(effect):
                    self._caller.call(callback, argument, aside=aside)
        finally:
            response.close()

    async def carry_out_on_loop(self, response: Response) -> None:
        """Do it, and let the loop have its turns in between."""
        answer: ReclaimResult | None = None
        try:
            while (effect := _next(response, answer)) is not None:
                answer = None
                if isinstance(effect, Ascend):
                    answer = await self._climb_on_loop(effect)
                    continue
                for callback, argument in self._calls(effect):
                    await self._caller.call_on_loop(callback, argument)
        finally:
            response.close()

    def _calls(self, effect: Tell) -> Iterator[tuple[Callback, tuple[object, ...]]]:
        argument = () if effect.fact is None else (effect.fact,)
        for callback in self._callbacks.at(effect.moment):
            if self._callbacks.is_known(callback):  # an earlier one may have removed it
                yield callback, argument

    def _climb(self, effect: Ascend) -> ReclaimResult | None:
        try:
            return self._ladder.reclaim(effect.level, effect.stop_below)
        except OSError:  # no reading in the middle of the climb; the next beat tries again
            return None

    async def _climb_on_loop(self, effect: Ascend) -> ReclaimResult | None:
        try:
            return await self._ladder.reclaim_async(effect.level, effect.stop_below)
        except OSError:
            return None


def _next(response: Response, answer: ReclaimResult | None) -> Effect | None:
    try:
        return response.send(answer)
    except StopIteration:
        return None


_LOG_EVERY_S: Final = 300.0
_TRY_AGAIN_S: Final = 30.0  # to start a thread, after the system gave none
_AFTER_A_FAULT_S: Final = 1.0


class Keeper:
    """The parts of one monitor, and how they work together."""

    def __init__(
        self,
        gauges: MemorySource,
        lookout: Lookout,
        ladder: Reclaimer,
        *,
        name: str,
        sample_every: int,
        cleanup_interval_s: float,
        callback_timeout_s: float,
        pressure: bool,
    ) -> None:
        self.name = name
        self.gauges = gauges
        self.lookout = lookout
        self.ladder = ladder
        self.callbacks = Callbacks()
        self.caller = Caller(callback_timeout_s, gauges.clock)
        self.relief = Relief(lookout, gauges.used, gauges.clock, cleanup_interval_s=cleanup_interval_s, name=name)
        self.operations = Operations(sample_every, self.sample)
        self.row = AdmissionRow(self._use_for_admission, gauges.clock)
        self.pauses = PauseMeter()
        self._doer = Doer(ladder, self.callbacks, self.caller)
        self._pressure = pressure
        self.beat_of: ThreadBeat | TaskBeat | None = None
        self.is_thread_wanted = False
        self._try_again_at = -inf
        self._log_again_at = -inf
        self._pid = os.getpid()

    @property
    def is_started(self) -> bool:
        """Whether a beat was started and has not ended by itself, as one does whose loop is gone."""
        return self.is_thread_wanted or (self.beat_of is not None and self.beat_of.is_alive)

    @property
    def beat_kind(self) -> str:
        """Who looks by time: `"thread"`, `"task"` or `"none"`."""
        beat = self.beat_of
        return beat.kind if beat is not None and beat.is_alive else "none"

    def sample(self) -> None:
        """Look as a sampled operation does; whatever goes wrong here is not the operation's affair."""
        try:
            if self.lookout.sample():
                self._look_for_operation()
        except Exception as error:
            self._note_fault(error)

    def check(self) -> Reading:
        """Look, act, and return what was read."""
        self._renew_if_forked()
        self._start_wanted_thread()
        look = self.lookout.look(waits=True, with_room=True)
        if look is None:  # from inside a look, by a finaliser or a signal handler
            return Reading(self.gauges.used(), self.lookout.limit.value_bytes, self.gauges.clock())
        self.relief.note(look)
        self._doer.carry_out(self.relief.respond(look))
        return look.reading

    def beat(self) -> float:
        """Look and act in the thread of the beat; return the seconds until the next beat."""
        try:
            self._doer.carry_out(self.relief.respond(self._look_on_beat()), aside=True)
        except Exception as error:
            self._note_fault(error)
            return _AFTER_A_FAULT_S
        return self._seconds()

    async def beat_on_loop(self) -> float:
        """Look and act on the loop of the beat; return the seconds until the next beat."""
        try:
            await self._doer.carry_out_on_loop(self.relief.respond(self._look_on_beat()))
        except Exception as error:
            self._note_fault(error)
            return _AFTER_A_FAULT_S
        return self._seconds()

    def feel(self, source: str) -> None:
        """Note that memory was said to be short; the beat looks next."""
        self.relief.note_pressure(source)

    def start_thread(self) -> None:
        """Start the beat in a thread; where none can be had, operations go on looking, and it is tried again."""
        self.is_thread_wanted = True
        self._try_again_at = -inf
        self._start_wanted_thread()

    def open_watch(self) -> PressureWatch | None:
        """Return an open watch for pressure; None where it is not wanted or there is nothing to watch."""
        if not self._pressure:
            return None
        try:
            return open_watch(self.gauges.headroom())
        except Exception as error:
            self._note_fault(error)
            return None

    def renew(self) -> None:
        """Begin anew in a forked child: new locks, no beat yet, nothing said."""
        self._pid = os.getpid()
        self.lookout.renew()
        self.relief.renew_lock()
        self.operations.renew_locks()
        self.row.renew()
        for callback in self.callbacks.all:
            callback.renew()
        beat, self.beat_of = self.beat_of, None
        if beat is None:
            return
        beat.forget()
        if beat.kind != "thread":
            self.pauses.stop()
        self._try_again_at = -inf

    def _renew_if_forked(self) -> None:
        # A fork by C code (uWSGI, mod_wsgi) runs no handler of Python's.
        if os.getpid() != self._pid:
            self.renew()

    def _look_on_beat(self) -> Look | None:
        look = self.lookout.look(with_room=True)
        if look is not None:
            self.relief.note(look)
        return look

    def _look_for_operation(self) -> None:
        self._renew_if_forked()
        self._start_wanted_thread()
        look = self.lookout.look()
        if look is None or not self.relief.note(look):
            return
        beat = self.beat_of
        if beat is not None and beat.is_alive:
            beat.wake()
            return
        self._doer.carry_out(self.relief.respond(look))

    def _start_wanted_thread(self) -> None:
        if not self.is_thread_wanted or (self.beat_of is not None and self.beat_of.is_alive):
            return
        now = self.gauges.clock()
        if now < self._try_again_at:
            return
        self._try_again_at = now + _TRY_AGAIN_S
        beat = ThreadBeat(self.name, self, self.open_watch)
        self.beat_of = beat
        if not beat.start():
            self.beat_of = None
            _log.warning("%s: no thread could be started; memory is looked at on operations only", self.name)

    def _seconds(self) -> float:
        return max(min(self.lookout.interval_s, self.relief.seconds_to_light()), self.lookout.shortest_s)

    def _use_for_admission(self) -> tuple[int, float] | None:
        try:
            used = self.gauges.used()
        except OSError:
            return 0, inf  # a reading that the system refuses keeps nobody waiting
        return self.lookout.allowance(used)

    def _note_fault(self, error: Exception) -> None:
        now = self.gauges.clock()
        if now < self._log_again_at:
            return
        self._log_again_at = now + _LOG_EVERY_S
        with suppress(MemoryError):  # nothing is left to tell it with
            _log.error("%s: a look failed, the next one comes: %s", self.name, error, exc_info=error)


# Put together what the parts of a monitor have counted.
#
# Threads: safe; each part is copied by itself, so the parts may be a moment apart.


def sum_up(keeper: Keeper) -> MonitorStatistics:
    """Return the statistics of a monitor."""
    lookout, relief, now = keeper.lookout, keeper.relief, keeper.gauges.clock()
    operations = keeper.operations.statistics()
    callbacks = tuple(callback.statistics(now) for callback in keeper.callbacks.alive())
    return MonitorStatistics(
        name=keeper.name,
        level=lookout.level,
        level_since_s=max(0.0, now - lookout.level_since),
        reading=lookout.reading,
        limit=lookout.limit,
        headroom=lookout.headroom,
        warning_bytes=_entry(lookout.marks, Level.WARNING),
        critical_bytes=_entry(lookout.marks, Level.CRITICAL),
        mode=keeper.beat_kind,
        interval_s=lookout.interval_s,
        operations=sum(one.calls for one in operations),
        failures=sum(one.failures for one in operations),
        samples=lookout.looks,
        failed_samples=lookout.missed,
        level_changes=dict(lookout.entered),
        cleanups=relief.cleanups,
        minor_collections=relief.minor_collections,
        freed_bytes=relief.freed_bytes,
        cleanup_s=relief.cleanup_s,
        ineffective_reclaims=relief.in_vain,
        pressure_signals=relief.pressure_signals,
        callback_failures=sum(one.failures for one in callbacks),
        callbacks_broken=sum(one.is_broken for one in callbacks),
        admissions=keeper.row.statistics(),
        pauses=keeper.pauses.statistics(),
        by_operation=operations,
        callbacks=callbacks,
    )


def _entry(marks: Marks, level: Level) -> int | None:
    mark = marks.by_level.get(level)
    return None if mark is None or mark.entry_bytes == inf else int(mark.entry_bytes)
