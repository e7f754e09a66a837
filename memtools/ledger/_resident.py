"""Count by the resident memory of the process: nearly free, and never anybody's own.

Covers: differences of the resident size between opening, end and every look in between. Leaves to others: reading it
(`memtools.readings`). All figures are process-wide, and owners say so by `exact=False`.
"""

import threading
from math import inf
from typing import Final, cast

from memtools.ledger._current import Slot
from memtools.ledger._owner import Owner
from memtools.readings import HighWater, resident_bytes

_NOTE: Final = "resident memory is the whole process's"


class ResidentMeter:
    """Figures from the resident size of the process, at 1 to 2 µs a look."""

    name: Final = "resident"
    follows: Final = False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._budgeted: list[Owner] = []
        self._holds = 0
        self._start = 0

    @property
    def unattributed_bytes(self) -> int:
        """Growth of the resident size since the meter was first held: nothing of it is anybody's own."""
        return resident_bytes() - self._start if self._holds else 0

    def hold(self) -> None:
        """Remember where the resident size stood; nothing has to be started."""
        with self._lock:
            self._holds += 1
            if self._holds == 1:
                self._start = resident_bytes()

    def release(self) -> None:
        """Give up one hold."""
        with self._lock:
            self._holds -= 1

    def enter(self, owner: Owner, slot: Slot) -> None:
        """Begin to measure `owner`: it is adrift from the beginning, and nobody's turn changes."""
        owner.base = resident_bytes()
        owner.watch = HighWater()
        owner.note = _NOTE
        if owner.ceiling != inf:
            with self._lock:
                self._budgeted.append(owner)

    def leave(self, owner: Owner, slot: Slot, back: Owner | None) -> None:
        """Write the owner's last figures."""
        owner.live, owner.peak = self._figures(owner)
        with self._lock:
            if owner in self._budgeted:
                self._budgeted.remove(owner)

    def switch(self, slot: Slot, owner: Owner | None) -> None:
        """Hold the budgets against the present size; there is no turn to change."""
        for budgeted in tuple(self._budgeted):
            budgeted.live, budgeted.peak = self._figures(budgeted)
            if budgeted.peak > budgeted.ceiling:
                slot.over = budgeted

    def set_adrift(self, owner: Owner, slot: Slot, why: str) -> None:
        """Change nothing: the figures are the process's anyway."""

    def look(self, owner: Owner) -> tuple[int, int]:
        """Return growth and highest growth of the resident size since the owner was opened."""
        live, peak = self._figures(owner)
        return int(live), int(peak)

    def after_fork(self, slot: Slot) -> None:
        """Make the lock anew: it may have been held by a thread that is no more."""
        self._lock = threading.RLock()

    def _figures(self, owner: Owner) -> tuple[float, float]:
        live = float(resident_bytes() - owner.base)
        risen_to = cast("HighWater", owner.watch).risen_to()
        peak = live if risen_to is None else risen_to - owner.base
        return live, max(owner.peak, live, peak, 0.0)
