"""Whether memory is above a threshold, without changing its mind at every reading.

Leaves to others: the monitor's own levels, which have a hysteresis of their own (`memtools.monitor`).

The band and the dwell are the monitor's: it is left 5 points (of the limit) below the entry, where there is a limit,
else 5 % of the threshold below it, and not before 10 s.
"""

from typing import Final

from memtools.readings import Reading

_BAND: Final = 0.05
_DWELL_S: Final = 10.0


class ThresholdEdge:
    """One threshold, entered at once and left late."""

    __slots__ = ("_entered_at", "is_above")

    def __init__(self) -> None:
        self.is_above = False
        self._entered_at = 0.0

    def judge(self, reading: Reading, entry_bytes: int | None) -> bool:
        """Take a reading, and the used bytes at which the threshold is entered now; return whether we are above it.

        An entry of None, which cannot be said under an unknown limit, is never entered.
        """
        if entry_bytes is None:
            self.is_above = False
        elif not self.is_above:
            if reading.used_bytes >= entry_bytes:
                self.is_above, self._entered_at = True, reading.at
        elif reading.used_bytes < exit_bytes(entry_bytes, reading.limit_bytes):
            self.is_above = reading.at - self._entered_at < _DWELL_S
        return self.is_above


def exit_bytes(entry_bytes: int, limit_bytes: int | None) -> int:
    """Return the used bytes below which a threshold is left."""
    band = int(_BAND * (limit_bytes if limit_bytes and limit_bytes >= entry_bytes else entry_bytes))
    # A threshold within the lowest 5 points would never be left.
    return entry_bytes - band if band < entry_bytes else max(entry_bytes // 2, 1)
