"""Count by the resident memory of the process: nearly free, and never anybody's own.

Covers: differences of the resident size between opening, end and every look in between. Leaves to others: reading it
(`memtools.readings`). All figures are process-wide, and owners say so by `exact=False`.
"""

import threading
from typing import Final, cast

from memtools.ledger._context import Slot
from memtools.ledger._owner import Owner
from memtools.readings import PeakSince, ReadingError, resident_bytes

_LATELY_S: Final = 0.001
_last_reading: tuple[float, int] = (-1.0, 0)

_NOTE: Final = "resident memory is the whole process's"


def resident_or_zero() -> int:
    """Return the resident size in bytes, 0 where it cannot be read: who is watched is not to fail for that."""
    try:
        return resident_bytes()
    except ReadingError:
        return 0


def resident_lately(now: float) -> int:
    """Return the resident size as of the last millisecond, for those who ask thousands of times a second.

    A thread that does nothing else makes some 4 MiB resident in that time.

    Args:
        now: what `time.perf_counter` says.
    """
    global _last_reading
    read_at, size = _last_reading
    if not 0.0 <= now - read_at <= _LATELY_S:
        size = resident_or_zero()
        _last_reading = now, size
    return size


class RssMeter:
    """Figures from the resident size of the process, at 1 to 2 µs a look."""

    @property
    def name(self) -> str:
        """`"rss"`."""
        return "rss"

    @property
    def follows(self) -> bool:
        """False: there is no turn to change."""
        return False

    @property
    def tells_threads_apart(self) -> bool:
        """False: its figures are the whole process's."""
        return False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holds = 0
        self._start = 0

    @property
    def unattributed_bytes(self) -> int:
        """Growth of the resident size since the meter was first held: nothing of it is anybody's own."""
        return resident_or_zero() - self._start if self._holds else 0

    def hold(self) -> None:
        """Remember where the resident size stood; nothing has to be started."""
        with self._lock:
            self._holds += 1
            if self._holds == 1:
                self._start = resident_or_zero()

    def release(self) -> None:
        """Give up one hold."""
        with self._lock:
            self._holds -= 1

    def enter(self, owner: Owner, _slot: Slot, _payer: Owner | None, _is_task: bool, /) -> None:
        """Begin to measure `owner`; nobody's turn changes."""
        owner.watch = PeakSince()
        owner.note = _NOTE

    def leave(self, owner: Owner, _slot: Slot, _back: Owner | None, /) -> None:
        """Write the owner's last figures."""
        self._measure(owner)

    def switch(self, _slot: Slot, _owner: Owner | None, /) -> None:
        """Change nothing: no owner of this meter has the turn."""

    def set_adrift(self, _owner: Owner, _why: str, /) -> None:
        """Change nothing: the figures are the process's anyway."""

    def look(self, owner: Owner, /) -> tuple[int, int]:
        """Return growth and highest growth of the resident size since the owner was opened."""
        self._measure(owner)
        return int(owner.live), int(owner.peak)

    def left_alive(self, _owner: Owner, /) -> None:
        """Know nothing: nobody remembers whose a block is."""

    def join(self, _owner: Owner, /) -> None:
        """Do nothing: what becomes of a block after its owner's end is not known."""

    def after_fork(self, _slot: Slot, /) -> None:
        """Make the lock anew: it may have been held by a thread that is no more."""
        self._lock = threading.RLock()

    def _measure(self, owner: Owner) -> None:
        if owner.watch is None:
            return  # another thread is just about to open it
        live = float(resident_or_zero() - owner.resident)
        peak_bytes = cast("PeakSince", owner.watch).peak_bytes()
        risen = live if peak_bytes is None else peak_bytes - owner.resident
        owner.live, owner.peak = live, max(owner.peak, live, risen)
