"""The meter that reads the resident memory of the process: nearly free, and process-wide.

All figures are those of the whole process, and owners say so by `exact=False`.
"""

import threading
from typing import Final, cast

from memtools.errors import ReadingError
from memtools.ledger._owner import Owner, ThreadSlot
from memtools.readings import resident_bytes
from memtools.readings._process import PeakSince

_MAX_AGE_S: Final = 0.001
_NOTE: Final = "resident memory is the whole process's"

_last_reading: tuple[float, int] = (-1.0, 0)


def rss_or_zero() -> int:
    """Return the resident size in bytes, or 0 if unreadable, so that measuring never breaks the program."""
    try:
        return resident_bytes()
    except ReadingError:
        return 0


def cached_rss(now: float) -> int:
    """Return the resident size as of the last millisecond, for callers that need it thousands of times a second.

    A thread that does nothing else makes some 4 MiB resident in that time.

    Args:
        now: the time, of `time.perf_counter`.
    """
    global _last_reading
    read_at, size = _last_reading
    if not 0.0 <= now - read_at <= _MAX_AGE_S:
        size = rss_or_zero()
        _last_reading = now, size
    return size


class RssMeter:
    """Figures from the resident size of the process, at 1 to 2 µs a reading."""

    @property
    def name(self) -> str:
        """`"rss"`."""
        return "rss"

    @property
    def tracks_owners(self) -> bool:
        """False: no owner is ever the current one."""
        return False

    @property
    def follows_contexts(self) -> bool:
        """False."""
        return False

    @property
    def is_per_thread(self) -> bool:
        """False: its figures are the whole process's."""
        return False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._acquired = 0
        self._start = 0

    @property
    def unattributed_bytes(self) -> int:
        """Growth of the resident size since the meter was first held: no owner's own."""
        return rss_or_zero() - self._start if self._acquired else 0

    def acquire(self) -> None:
        """Remember the resident size; nothing has to be started."""
        with self._lock:
            self._acquired += 1
            if self._acquired == 1:
                self._start = rss_or_zero()

    def release(self) -> None:
        """Undo one `acquire`."""
        with self._lock:
            self._acquired -= 1

    def start(self, owner: Owner, _slot: ThreadSlot, _parent: Owner | None, _is_task: bool, /) -> None:
        """Begin to measure `owner`."""
        owner.meter_state = PeakSince()
        owner.note = _NOTE

    def stop(self, owner: Owner, _slot: ThreadSlot, _next_owner: Owner | None, /) -> None:
        """Write the owner's last figures."""
        self._measure(owner)

    def switch(self, _slot: ThreadSlot, _owner: Owner | None, /) -> None:
        """Change nothing: no owner of this meter is ever the current one."""

    def mark_untracked(self, _owner: Owner, _why: str, /) -> None:
        """Change nothing: the figures are the process's anyway."""

    def read(self, owner: Owner, /) -> tuple[int, int]:
        """Return growth and highest growth of the resident size since the owner was opened."""
        self._measure(owner)
        return int(owner.live), int(owner.peak)

    def charge_unowned(self, owner: Owner, /) -> None:
        """Do nothing: the owner has all that its thread does."""

    def overcount_reason(self, owner: Owner, /) -> str:
        """Return the owner's note: the figures are those of the process."""
        return owner.note

    def live_bytes(self, _owner: Owner, /) -> None:
        """Return None: this meter does not track blocks."""

    def attach_account(self, _owner: Owner, /) -> None:
        """Do nothing: this meter does not track blocks."""

    def after_fork(self, _slot: ThreadSlot, /) -> None:
        """Renew the lock: a thread that is gone may have held it."""
        self._lock = threading.RLock()

    def _measure(self, owner: Owner) -> None:
        if owner.meter_state is None:
            return  # another thread is just about to open it
        live = float(rss_or_zero() - owner.resident_at_open)
        peak_bytes = cast("PeakSince", owner.meter_state).peak_bytes()
        risen = live if peak_bytes is None else peak_bytes - owner.resident_at_open
        owner.live, owner.peak = live, max(owner.peak, live, risen)
