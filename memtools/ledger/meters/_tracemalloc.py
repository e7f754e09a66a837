"""Count bytes with tracemalloc: exact for one thread, dear, available everywhere.

Covers: one shared session of one frame per block, cutting the process's traced total into segments, the garbage
collector's part, sessions that somebody else stops or clears. Leaves to others: what a segment does to the tree of
owners (`_tally`), when the turn changes (`_book`, `_driver`, `_frames`).

tracemalloc knows one number for the process, so a segment belongs to whoever has the turn, whoever's blocks are freed
in it. Three things would charge the wrong one:

- *Another thread.* When two threads have the turn, the one that took it last is charged until it gives it back, which
  is right as long as the interpreter does not change threads in between (5 ms). `_neighbours` says when it may have.
- *The garbage collector* frees cycles of anybody's in the middle of somebody's segment. What it frees is credited to
  nobody, except where all objects that it looks at were made by the one who has the turn. An owner whose figures would
  look different otherwise says so.
- *Somebody else's* `tracemalloc.stop()` or `clear_traces()`. A block of our own tells us by having no trace any more;
  owners that were open then say that their figures are not exact.
"""

import gc
import sys
import threading
import tracemalloc
from typing import Any, Final, cast

from memtools.ledger._context import Slot
from memtools.ledger._counters import attach, charge, detach, inclusive, share
from memtools.ledger._owner import Owner
from memtools.units import format_size

_LOST: Final = "tracemalloc was stopped or cleared meanwhile"
# Three generations that are each collected as a whole, the younger ones with it. Changed in 3.14.
_GENERATIONS_ARE_WHOLE: Final = sys.version_info < (3, 14)
_FREE_THREADED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
# What a collection may have freed for nobody of an owner's bytes before the owner's figures count as doubtful.
_DOUBT_SHARE: Final = 0.02
_DOUBT_BYTES: Final = 65_536

_get_traced_memory = tracemalloc.get_traced_memory
_reset_peak = tracemalloc.reset_peak

_SHARED_ALL: Final[tuple[bool, ...]] = (True, True, True)
_FIRST_TURN: Final[tuple[bool, ...]] = (True, True, True, True)
_ALONE: Final[tuple[bool, ...]] = (False, False, False)


class _Watch:
    """Highest traced total of the process since an owner went adrift."""

    __slots__ = ("high",)

    def __init__(self, high: float) -> None:
        self.high = high


def _is_busy(slot: Slot) -> bool:
    return slot.owner is not None


class TracemallocMeter:
    """Figures from one tracemalloc session that is shared by all owners and started for the first of them.

    A session that somebody else started is used and left alone. Ours ends with the last hold.

    Threads: owners are opened and ended under a lock. Changing the turn takes none under the GIL: it happens in
    collector callbacks, too, where waiting for a lock could be for ever; see `_settle` for why the sums still add up.
    """

    def __init__(self) -> None:
        # Reentrant: a finaliser that runs in the middle may open a scope of its own.
        self._lock = threading.RLock()
        self._holds = 0
        self._started_here = False
        # Counters are floats for the same reason as those of `_tally`.
        # Less the traced total where the present segment began. A float on the left of a sum is what is quick: an int
        # there is asked first, and has no answer.
        self._minus_mark = 0.0
        self._unattributed = 0.0
        self._freed_for_nobody = 0.0
        self._epoch = 0.0
        # For each generation: whether somebody else may have had the turn since it was last collected.
        self._is_shared: tuple[bool, ...] = _SHARED_ALL
        self._probe: object = None
        self._holder: Slot | None = None
        # Those that have had the turn, and some of which may be idle now: shrinking and growing a list at every step
        # would be an allocation.
        self._slots: list[Slot] = []
        self._watches: list[_Watch] = []
        self._is_collecting = False
        self._interrupted: Owner | None = None

    @property
    def name(self) -> str:
        """`"tracemalloc"`."""
        return "tracemalloc"

    @property
    def follows(self) -> bool:
        """True: a segment belongs to whoever has the turn."""
        return True

    @property
    def tells_threads_apart(self) -> bool:
        """False: tracemalloc knows one number for the process."""
        return False

    @property
    def unattributed_bytes(self) -> int:
        """Traced bytes that were added, less those freed, while nobody had the turn."""
        with self._lock:
            if self._holds:
                self._settle()
            return int(self._unattributed)

    def hold(self) -> None:
        """Start the session, or join it."""
        with self._lock:
            self._holds += 1
            if self._holds > 1:
                return
            self._unattributed = self._freed_for_nobody = 0.0
            self._started_here = not tracemalloc.is_tracing()
            if self._started_here:
                tracemalloc.start(1)
                # What was made before is not traced: the first turn is as good as alone in the world.
                self._is_shared = _FIRST_TURN
            self._begin_epoch()
            gc.callbacks.append(self._on_collection)

    def release(self) -> None:
        """Leave the session; the last one out ends it, if it is ours."""
        with self._lock:
            self._holds -= 1
            if self._holds:
                return
            gc.callbacks.remove(self._on_collection)
            self._probe = None
            self._holder = None
            for slot in self._slots:
                slot.owner = None
            self._slots = []
            if self._started_here and tracemalloc.is_tracing():
                tracemalloc.stop()

    def enter(self, owner: Owner, slot: Slot, payer: Owner | None, is_task: bool, /) -> None:
        """Begin to measure `owner`."""
        with self._lock:
            self._check_probe()
            if not owner.adrift:
                attach(owner, payer, in_line=not is_task and payer is slot.owner)
            self._settle()
            owner.base = 0.0 - self._minus_mark
            owner.epoch = self._epoch
            owner.freed_before = self._freed_for_nobody
            owner.outer = slot.owner
            if owner.adrift:
                owner.watch = self._watch()
            else:
                self._move(slot, owner)

    def leave(self, owner: Owner, slot: Slot, back: Owner | None, /) -> None:
        """Write the owner's last figures and give the turn back, if it has it."""
        with self._lock:
            self._settle()
            self._check_probe()
            detach(owner)
            if owner.adrift:
                owner.live, owner.peak = self._process_wide(owner)
                self._watches.remove(cast("_Watch", owner.watch))
            if owner.epoch != self._epoch:
                owner.note = _LOST
            elif not owner.note:
                owner.note = self._doubt(owner)
            if slot.owner is owner:
                self._move(slot, back)

    def switch(self, slot: Slot, owner: Owner | None, /) -> None:
        """Charge `owner` for what this thread allocates from now on."""
        if not self._holds:
            return
        if _FREE_THREADED:
            with self._lock:
                self._settle()
                self._move(slot, owner)
            return

        # `_settle` and `_move` in one piece: this runs twice at each step of each task.
        now, peak = _get_traced_memory()
        minus_mark = self._minus_mark
        self._minus_mark = 0.0 - now
        _reset_peak()
        if self._holder is not slot or self._watches or self._is_collecting or not now:
            self._charge(now, peak, minus_mark)
        elif slot.owner is None:
            self._unattributed += minus_mark + now
        else:
            net = minus_mark + now
            rise = minus_mark + peak
            charge(slot.owner, net, rise if rise >= net and rise >= 0.0 else max(net, 0.0))

        if self._holder is slot and (len(self._slots) == 1 if owner is None else owner.child is None):
            self._is_shared = _SHARED_ALL
            slot.owner = owner
        else:
            self._move(slot, owner)

    def set_adrift(self, owner: Owner, why: str, /) -> None:
        """Turn the owner's figures into the whole process's: nobody follows its steps any more.

        What it was charged with until now goes to its payer; what comes now is not its payer's own either.
        """
        with self._lock:
            if owner.adrift or owner.ended:
                return
            self._settle()
            owner.peak = inclusive(owner)[1]
            detach(owner)
            owner.adrift = True
            owner.note = why
            owner.watch = self._watch()
            above = owner.parent
            owner.charged = above.charged if above is not None and not above.ended else None
            for slot in self._slots:
                if slot.owner is owner:
                    self._move(slot, owner.outer)

    def look(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes up to now."""
        with self._lock:
            if self._holds:  # or another thread has ended the owner, and the session with it
                self._settle()
            live, peak = self._process_wide(owner) if owner.adrift and owner.watch else inclusive(owner)
            return int(live), int(peak)

    def left_alive(self, _owner: Owner, /) -> None:
        """Know nothing: nobody remembers whose a block is."""

    def join(self, _owner: Owner, /) -> None:
        """Do nothing: what becomes of a block after its owner's end is not known."""

    def after_fork(self, slot: Slot, /) -> None:
        """Make the lock anew and forget the threads that are no more."""
        self._lock = threading.RLock()
        self._slots = [slot]
        self._holder = slot if slot.owner is not None else None

    def _settle(self) -> None:
        """End the present segment: charge it and begin the next.

        A collection, a signal handler or another thread may come in at any call below. The mark is therefore moved
        before anything else is done: what comes in between settles a segment of its own, and the sums still add up.
        """
        now, peak = _get_traced_memory()
        minus_mark = self._minus_mark
        self._minus_mark = 0.0 - now
        _reset_peak()
        self._charge(now, peak, minus_mark)

    def _charge(self, now: int, peak: int, minus_mark: float) -> None:
        """Charge the segment that ends at `now` to whoever had the turn."""
        if not now and not tracemalloc.is_tracing():
            self._restart()
            return

        net = minus_mark + now
        rise = minus_mark + peak
        if rise < net or rise < 0.0:
            rise = max(net, 0.0)  # somebody else reset the peak
        if self._watches:
            self._raise_watches(peak)
        holder = self._holder
        owner = holder.owner if holder is not None else None
        if self._is_collecting and owner is self._interrupted:
            self._freed_for_nobody -= net
            owner = None
        if owner is None:
            self._unattributed += net
        else:
            charge(owner, net, rise)

    def _move(self, slot: Slot, owner: Owner | None) -> None:
        # The first turn of a session of ours is the one exception: there is nothing from before that it could meet.
        self._is_shared = _ALONE if self._is_shared is _FIRST_TURN else _SHARED_ALL
        slot.owner = owner
        if owner is not None:
            if owner.child is not None:
                share(owner)  # it goes on while an owner inside it is still open
            if self._holder is not slot:
                self._holder = slot
                if slot not in self._slots:
                    self._slots = [*filter(_is_busy, self._slots), slot]
        elif self._holder is slot and len(self._slots) > 1:
            # Another thread may still be at work: the turn goes back to it.
            self._holder = next(filter(_is_busy, self._slots), slot)

    def _raise_watches(self, total: int) -> None:
        for watch in self._watches:
            watch.high = max(watch.high, total)

    def _watch(self) -> _Watch:
        watch = _Watch(0.0 - self._minus_mark)
        self._watches.append(watch)
        return watch

    def _process_wide(self, owner: Owner) -> tuple[float, float]:
        high = cast("_Watch", owner.watch).high
        return -self._minus_mark - owner.base, max(high - owner.base, owner.peak, 0.0)

    def _doubt(self, owner: Owner) -> str:
        freed = min(self._freed_for_nobody - owner.freed_before, owner.live)
        if freed <= max(_DOUBT_BYTES, _DOUBT_SHARE * owner.peak):
            return ""
        return f"up to {format_size(freed)} of it may have been freed by the garbage collector"

    def _check_probe(self) -> None:
        if tracemalloc.get_object_traceback(self._probe) is None:
            if not tracemalloc.is_tracing():
                self._restart()
            else:
                self._begin_epoch()

    def _restart(self) -> None:
        # Owners that open later shall find a session, whoever stopped the last one.
        tracemalloc.start(1)
        self._started_here = True
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch += 1.0
        self._probe = bytearray(1)
        _reset_peak()
        self._minus_mark = 0.0 - _get_traced_memory()[0]

    def _on_collection(self, phase: str, about: dict[str, Any]) -> None:
        # `Any`: the type that typeshed gives to collector callbacks.
        generation: int = about["generation"]
        if phase == "start":
            # The turn has not changed since the last time: nobody else can have made what is looked at.
            if not _GENERATIONS_ARE_WHOLE or self._is_shared[generation]:
                self._settle()
                self._interrupted = self._holder.owner if self._holder is not None else None
                self._is_collecting = True
            return

        if self._is_collecting:
            self._settle()
            self._is_collecting = False
            self._interrupted = None
        self._is_shared = (*_ALONE[: generation + 1], *self._is_shared[generation + 1 :])
