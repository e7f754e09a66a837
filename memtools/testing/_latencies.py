"""How long calls take, in bounded space.

Covers: keeping enough of them for percentiles, evenly spread over the round.
Leaves to others: taking the time (`_stress_test`).
"""

import math
from array import array
from typing import Final

_MOST_KEPT: Final = 8192  # even: every second is dropped when it is full


class Latencies:
    """The calls of one round; nothing is allocated for a call that stays."""

    def __init__(self) -> None:
        self._kept = array("d", bytes(8 * _MOST_KEPT))
        self.clear()

    def clear(self) -> None:
        """Begin a round."""
        self._held = self._seen = 0
        self._stride = 1
        self.longest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Remember that a call took `duration_s`."""
        if duration_s > self.longest_s:
            self.longest_s = duration_s
        place, rest = divmod(self._seen, self._stride)
        self._seen += 1
        if rest:
            return
        if place == _MOST_KEPT:
            self._thin_out()
        self._kept[self._held] = duration_s
        self._held += 1

    def percentile(self, percent: float) -> float:
        """Return what that share of the calls did not take longer than, in seconds (nearest rank); 0 without calls."""
        if not self._held:
            return 0.0
        kept = sorted(self._kept[: self._held])
        return kept[max(math.ceil(self._held * percent / 100), 1) - 1]

    def _thin_out(self) -> None:
        self._held //= 2
        self._stride *= 2
        self._kept[: self._held] = self._kept[: self._held * 2 : 2]
