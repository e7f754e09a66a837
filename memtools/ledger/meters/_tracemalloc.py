"""The meter that uses tracemalloc: exact for one thread, expensive, available everywhere.

tracemalloc knows one number for the process, so a segment of time is charged to the current owner, whichever owner's
blocks are freed in it. Four cases would charge the wrong one:

- *Another thread.* When two threads have a current owner, the one that switched last is charged until it switches
  back, which is right as long as the interpreter does not change threads in between (5 ms). The CPU time of the other
  threads shows when it may have done so.
- *The garbage collector* frees cycles of any owner in the segment of another one. What it frees is credited to no
  owner, except where the current owner has allocated all objects that it examines. An owner whose figures would differ
  otherwise says so.
- *Children that are not tracked.* A task or a callback that an owner starts is charged to no owner, unless
  `track_tasks()` or the program says whose it is. An owner says so if as much was allocated meanwhile as would make its
  figures differ.
- *Another tool's* `tracemalloc.stop()` or `clear_traces()`. A sentinel block that has no trace any more shows it;
  owners that were open then say that their figures are not exact.

On free-threaded builds threads run at once, so an owner's figures hold what the others do meanwhile, and say so.
CPython's `tracemalloc.start()` and `stop()` are not safe there beside other threads (gh-126315): the meter calls
`start` while the others are idle, and `stop` while there are none. `-X tracemalloc` starts it before there are any.
"""

import gc
import logging
import sys
import threading
import tracemalloc
from time import monotonic
from typing import Any, Final, cast

from memtools._threads import running_threads
from memtools.ledger import _threads
from memtools.ledger._counters import aggregate_eagerly, attach, charge, detach, totals
from memtools.ledger._owner import Owner, ThreadSlot, native_module
from memtools.units import format_size

_NOT_TRACKED: Final = "tasks that are not tracked added {} meanwhile, which may be its own (see memtools.track_tasks)"
_SESSION_LOST: Final = "tracemalloc was stopped or cleared meanwhile"
_NOT_STARTED: Final = (
    "tracemalloc cannot be started while other threads run on a free-threaded build: start Python with -X tracemalloc"
)
# Python 3.14.0 to 3.14.4 collect generation 1 together with a part of the oldest objects, whose owners are not known.
# All other Pythons collect each of the three generations as a whole, the younger ones with it; without the GIL a
# collection is always one of all objects.
_IS_INCREMENTAL: Final = 0x030E0000 <= sys.hexversion < 0x030E0500
_FREE_THREADED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
# What a collection may have freed of an owner's bytes, credited to no owner, before the figures count as inexact.
_INEXACT_SHARE: Final = 0.02
_INEXACT_BYTES: Final = 65_536
# How long a collection waits for the lock on a free-threaded build; what it frees may be anyone's where it gets none.
_COLLECTION_WAIT_S: Final = 0.1
_ANY_BYTES: Final = 2.0**50
# How long other threads must have been idle for a session to be started beside them, and how often that is looked at.
_IDLE_S: Final = 0.02
_LOOK_EVERY_S: Final = 1.0

_log = logging.getLogger("memtools.ledger")

_get_traced_memory = tracemalloc.get_traced_memory
_reset_peak = tracemalloc.reset_peak

_ALL_MIXED: Final[tuple[bool, ...]] = (True, True, True)
_FIRST_SEGMENT: Final[tuple[bool, ...]] = (True, True, True, True)
_NONE_MIXED: Final[tuple[bool, ...]] = (False, False, False)


class _PeakTracker:
    """Highest traced total of the process since an owner became untracked."""

    __slots__ = ("high",)

    def __init__(self, high: float) -> None:
        self.high = high


def _is_busy(slot: ThreadSlot) -> bool:
    return slot.owner is not None


def _is_alone() -> bool:
    """Return whether `tracemalloc.start` and `stop` are safe, since no other thread can call an allocator."""
    if not _FREE_THREADED:
        return True
    return len(running_threads()) <= 1 + _threads.IDLE_THREADS


def _set_other_meters(are_in_use: bool) -> None:
    # The C code leaves the current owner of a thread alone while nothing asks for it.
    native = native_module()
    if native is not None:
        native.set_other_meters(are_in_use)


class TracemallocMeter:
    """Figures from one tracemalloc session that is shared by all owners and started for the first of them.

    A session that another tool started is used and left running. One that the meter started ends with the last release,
    on free-threaded builds with the last one beside which no other thread runs.

    Owners are opened and closed under a lock. A switch takes none under the GIL: it happens in collector callbacks,
    too, where waiting for a lock could deadlock; see `_flush` for why the sums still add up. On free-threaded builds
    both take it, a callback for a limited time.
    """

    def __init__(self) -> None:
        # Reentrant: a finaliser that runs in between may open a scope of its own.
        self._lock = threading.RLock()
        self._acquired = 0
        self._started_here = False
        self._has_warned = False
        self._look_again_at = 0.0
        # Sums are floats for the same reason as those of `Counter`.
        # Less the traced total where the present segment began. A float on the left of a sum is fast: an int
        # there is tried first, and cannot add a float.
        self._negative_baseline = 0.0
        self._unattributed = 0.0
        self._freed_unattributed = 0.0
        self._unowned = 0.0  # all that segments without a current owner have added while they lasted
        self._session = 0.0
        # For each generation: whether another owner may have been current since it was last collected.
        self._generation_is_mixed: tuple[bool, ...] = _ALL_MIXED
        self._sentinel: object = None
        self._active_slot: ThreadSlot | None = None
        # The slots that have had a current owner; some may be idle now: shrinking and growing a list at every step
        # would be an allocation.
        self._slots: list[ThreadSlot] = []
        self._peak_trackers: list[_PeakTracker] = []
        self._is_collecting = False
        self._interrupted: Owner | None = None

    @property
    def name(self) -> str:
        """`"tracemalloc"`."""
        return "tracemalloc"

    @property
    def tracks_owners(self) -> bool:
        """True: a segment is charged to the current owner."""
        return True

    @property
    def follows_contexts(self) -> bool:
        """False."""
        return False

    @property
    def is_per_thread(self) -> bool:
        """False: tracemalloc knows one number for the process."""
        return False

    @property
    def unattributed_bytes(self) -> int:
        """Traced bytes that were added, less those freed, without a current owner."""
        with self._lock:
            if self._acquired:
                self._flush()
            return int(self._unattributed)

    def acquire(self) -> None:
        """Start the session, or use the one that is running."""
        with self._lock:
            self._acquired += 1
            if self._acquired > 1:
                return
            _set_other_meters(True)
            self._unattributed = self._freed_unattributed = 0.0
            if tracemalloc.is_tracing():
                # One that the meter could not stop is still its own, unless another tool has stopped it since.
                was_kept = self._started_here and tracemalloc.get_object_traceback(self._sentinel) is not None
                self._started_here = was_kept
            elif self._start_tracing(wait=True):
                # Blocks from before `start()` are not traced, so nothing of another owner can be collected in the first
                # segment.
                self._generation_is_mixed = _FIRST_SEGMENT
            self._start_session()
            gc.callbacks.append(self._on_collection)

    def release(self) -> None:
        """Undo one `acquire`; the last release ends the session if the meter has started it."""
        with self._lock:
            self._acquired -= 1
            if self._acquired:
                return
            _set_other_meters(False)
            gc.callbacks.remove(self._on_collection)
            self._active_slot = None
            for slot in self._slots:
                slot.owner = None
            self._slots = []
            if self._started_here and tracemalloc.is_tracing() and not _is_alone():
                return
            self._sentinel = None
            if self._started_here and tracemalloc.is_tracing():
                tracemalloc.stop()
            self._started_here = False

    def start(self, owner: Owner, slot: ThreadSlot, parent: Owner | None, is_task: bool, /) -> None:
        """Begin to measure `owner`."""
        with self._lock:
            self._detect_reset()
            if not owner.is_untracked:
                attach(owner, parent, inline=not is_task and parent is slot.owner)
            self._flush()
            owner.baseline = 0.0 - self._negative_baseline
            owner.session = self._session
            owner.freed_before = self._freed_unattributed
            owner.unowned_before = self._unowned
            owner.previous = slot.owner
            if owner.is_untracked:
                owner.meter_state = self._new_peak_tracker()
            else:
                self._set_slot_owner(slot, owner)

    def stop(self, owner: Owner, slot: ThreadSlot, next_owner: Owner | None, /) -> None:
        """Write the owner's last figures; if it is the current one, make `next_owner` the current one."""
        with self._lock:
            self._flush()
            self._detect_reset()
            detach(owner)
            if owner.is_untracked:
                owner.live, owner.peak = self._process_wide(owner)
                self._peak_trackers.remove(cast("_PeakTracker", owner.meter_state))
            if owner.session != self._session:
                owner.note = _SESSION_LOST if tracemalloc.is_tracing() else _NOT_STARTED
            elif not owner.note:
                owner.note = self._inexact_reason(owner)
            if slot.owner is owner:
                self._set_slot_owner(slot, next_owner)

    def switch(self, slot: ThreadSlot, owner: Owner | None, /) -> None:
        """Charge `owner` for what this thread allocates from now on."""
        if not self._acquired:
            return
        if _FREE_THREADED:
            with self._lock:
                self._flush()
                self._set_slot_owner(slot, owner)
            return

        # `_flush` and `_set_slot_owner` inlined: this runs twice at each step of each task.
        now, peak = _get_traced_memory()
        negative_baseline = self._negative_baseline
        self._negative_baseline = 0.0 - now
        _reset_peak()
        if self._active_slot is not slot or self._peak_trackers or self._is_collecting or not now:
            self._charge(now, peak, negative_baseline)
        elif slot.owner is None:
            self._unattributed += negative_baseline + now
            self._unowned += max(negative_baseline + peak, 0.0)
        else:
            net = negative_baseline + now
            rise = negative_baseline + peak
            charge(slot.owner, net, rise if rise >= net and rise >= 0.0 else max(net, 0.0))

        if self._active_slot is slot and (len(self._slots) == 1 if owner is None else owner.inline_child is None):
            self._generation_is_mixed = _ALL_MIXED
            slot.owner = owner
        else:
            self._set_slot_owner(slot, owner)

    def mark_untracked(self, owner: Owner, why: str, /) -> None:
        """Turn the owner's figures into the whole process's, because its steps are not tracked any more.

        What it was charged with until now goes to its parent; what comes now is not charged to its parent either.
        """
        with self._lock:
            if owner.is_untracked or owner.ended:
                return
            self._flush()
            owner.peak = totals(owner)[1]
            detach(owner)
            owner.is_untracked = True
            owner.note = why
            owner.meter_state = self._new_peak_tracker()
            above = owner.parent
            owner.charged_to = above.charged_to if above is not None and not above.ended else None
            for slot in self._slots:
                if slot.owner is owner:
                    self._set_slot_owner(slot, owner.previous)

    def read(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes up to now."""
        with self._lock:
            if self._acquired:  # or another thread has ended the owner, and the session with it
                self._flush()
            live, peak = self._process_wide(owner) if owner.is_untracked and owner.meter_state else totals(owner)
            return int(live), int(peak)

    def charge_unowned(self, owner: Owner, /) -> None:
        """Do nothing: the owner has all that its thread does."""

    def overcount_reason(self, owner: Owner, /) -> str:
        """Return the owner's note, unless it says that something may be missing."""
        return "" if owner.note.startswith(_NOT_TRACKED[: _NOT_TRACKED.index("{")]) else owner.note

    def live_bytes(self, _owner: Owner, /) -> None:
        """Return None: the owner of a block is not known."""

    def attach_account(self, _owner: Owner, /) -> None:
        """Do nothing: the owner of a block is not known."""

    def after_fork(self, slot: ThreadSlot, /) -> None:
        """Renew the lock and forget the threads that are gone."""
        self._lock = threading.RLock()
        self._slots = [slot]
        self._active_slot = slot if slot.owner is not None else None

    def _flush(self) -> None:
        """End the present segment: charge it and begin the next.

        A collection, a signal handler or another thread may interrupt at any call below. So the baseline is moved
        before anything else is done: what interrupts flushes a segment of its own, and the sums still add up.
        """
        now, peak = _get_traced_memory()
        negative_baseline = self._negative_baseline
        self._negative_baseline = 0.0 - now
        _reset_peak()
        self._charge(now, peak, negative_baseline)

    def _charge(self, now: int, peak: int, negative_baseline: float) -> None:
        """Charge the segment that ends at `now` to the current owner."""
        if not now and not tracemalloc.is_tracing():
            if not _FREE_THREADED:  # there the next owner to be opened or closed tries
                self._restart()
            return

        net = negative_baseline + now
        rise = negative_baseline + peak
        if rise < net or rise < 0.0:
            rise = max(net, 0.0)  # another tool has reset the peak
        if self._peak_trackers:
            self._update_peaks(peak)
        active = self._active_slot
        owner = active.owner if active is not None else None
        if self._is_collecting and owner is self._interrupted:
            self._freed_unattributed -= net
            self._unattributed += net
        elif owner is None:
            self._unattributed += net
            self._unowned += rise
        else:
            charge(owner, net, rise)

    def _set_slot_owner(self, slot: ThreadSlot, owner: Owner | None) -> None:
        # Except in the first segment of a session that the meter has started: there are no traced blocks from before.
        self._generation_is_mixed = _NONE_MIXED if self._generation_is_mixed is _FIRST_SEGMENT else _ALL_MIXED
        slot.owner = owner
        if owner is not None:
            if owner.inline_child is not None:
                aggregate_eagerly(owner)  # it goes on while an owner inside it is still open
            if self._active_slot is not slot:
                self._active_slot = slot
                if slot not in self._slots:
                    self._slots = [*filter(_is_busy, self._slots), slot]
        elif self._active_slot is slot and len(self._slots) > 1:
            # Another thread may still have a current owner, which is charged from now on.
            self._active_slot = next(filter(_is_busy, self._slots), slot)

    def _update_peaks(self, total: int) -> None:
        for tracker in self._peak_trackers:
            tracker.high = max(tracker.high, total)

    def _new_peak_tracker(self) -> _PeakTracker:
        tracker = _PeakTracker(0.0 - self._negative_baseline)
        self._peak_trackers.append(tracker)
        return tracker

    def _process_wide(self, owner: Owner) -> tuple[float, float]:
        high = cast("_PeakTracker", owner.meter_state).high
        return -self._negative_baseline - owner.baseline, max(high - owner.baseline, owner.peak, 0.0)

    def _inexact_reason(self, owner: Owner) -> str:
        threshold = max(_INEXACT_BYTES, _INEXACT_SHARE * owner.peak)
        freed = min(self._freed_unattributed - owner.freed_before, owner.live)
        if freed > threshold:
            return f"up to {format_size(freed)} of it may have been freed by the garbage collector"
        unowned = self._unowned - owner.unowned_before
        return _NOT_TRACKED.format(format_size(unowned)) if unowned > threshold else ""

    def _detect_reset(self) -> None:
        if tracemalloc.get_object_traceback(self._sentinel) is None:
            if not tracemalloc.is_tracing():
                self._restart()
            else:
                self._start_session()

    def _restart(self) -> None:
        # Owners that are opened later need a session, whatever stopped the last one.
        self._start_tracing()
        self._start_session()

    def _start_tracing(self, *, wait: bool = False) -> bool:
        self._started_here = _is_alone() or (wait and self._others_are_idle())
        if self._started_here:
            tracemalloc.start(1)
        elif not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Figures of meter='tracemalloc' are missing, and say that they are not exact: %s", _NOT_STARTED
            )
        return self._started_here

    def _others_are_idle(self) -> bool:
        # Threads that wait for something, as those of pools, allocate nothing at this moment.
        now = monotonic()
        if now < self._look_again_at:
            return False
        self._look_again_at = now + _LOOK_EVERY_S
        return _threads.others_are_idle(_IDLE_S)

    def _start_session(self) -> None:
        self._session += 1.0
        self._sentinel = bytearray(1)
        _reset_peak()
        self._negative_baseline = 0.0 - _get_traced_memory()[0]

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        # Any: the type that typeshed gives to collector callbacks.
        generation: int = info["generation"]
        if not _FREE_THREADED:
            self._settle_collection(phase, generation)
            return

        # Other threads run while the callbacks do. The thread that holds the lock may wait for another one that this
        # thread holds, hence the limit.
        if not self._lock.acquire(timeout=_COLLECTION_WAIT_S):
            self._freed_unattributed += _ANY_BYTES
            return
        try:
            self._settle_collection(phase, generation)
        finally:
            self._lock.release()

    def _settle_collection(self, phase: str, generation: int) -> None:
        if phase == "start":
            # Unless the owner has changed since the last time, it has allocated all that is examined.
            # On free-threaded builds all of the heap is examined, whichever generation is named.
            is_part = _FREE_THREADED or (_IS_INCREMENTAL and generation == 1)
            if is_part or self._generation_is_mixed[generation]:
                self._flush()
                self._interrupted = self._active_slot.owner if self._active_slot is not None else None
                self._is_collecting = True
            return

        if self._is_collecting:
            self._flush()
            self._is_collecting = False
            self._interrupted = None
        self._generation_is_mixed = (*_NONE_MIXED[: generation + 1], *self._generation_is_mixed[generation + 1 :])
