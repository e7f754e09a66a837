"""Everything that a monitor does, whoever looks: operations, the beat, `check()`.

Covers: who acts on a look, faults of our own, a new beginning in a forked child, threads that could not start.
Leaves to others: the parts themselves. `MemoryMonitor` is the face of this; it may be dropped while a beat still runs,
which is how its finaliser can tell.
"""

import logging
import os
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final

from memtools.cleanup import Ladder
from memtools.monitor._admission import AdmissionRow
from memtools.monitor._callbacks import Callbacks
from memtools.monitor._calling import Caller
from memtools.monitor._doing import Doer
from memtools.monitor._gauges import Gauges
from memtools.monitor._lookout import Look, Lookout
from memtools.monitor._operations import Operations
from memtools.monitor._pauses import PauseMeter
from memtools.monitor._pressure import PressureWatch, open_watch
from memtools.monitor._relief import Relief
from memtools.monitor._thread_beat import ThreadBeat
from memtools.readings import Reading

if TYPE_CHECKING:
    from memtools.monitor._task_beat import TaskBeat

_LOG_EVERY_S: Final = 300.0
_TRY_AGAIN_S: Final = 30.0  # to start a thread, after the system gave none
_AFTER_A_FAULT_S: Final = 1.0

_log = logging.getLogger("memtools.monitor")


class Keeper:
    """The parts of one monitor, and how they work together."""

    def __init__(
        self,
        gauges: Gauges,
        lookout: Lookout,
        ladder: Ladder,
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
