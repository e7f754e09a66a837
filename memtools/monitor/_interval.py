"""How long the beat may wait until it looks again.

Covers: the nearness of the next threshold, the speed at which memory fills, the bounds of 50 ms and 5 s.
Leaves to others: measuring (`_eye`), waiting (`_thread_beat`, `_task_beat`).

A look costs some microseconds, and one with headroom some hundred: 5 s apart that is under 0.01 % of a core, 50 ms
apart under 1 %, which is only paid while memory fills fast or is short.
"""

from typing import Final

SHORTEST_S: Final = 0.05
LONGEST_S: Final = 5.0
LOOKS_BEFORE_THE_THRESHOLD: Final = 4  # at the present speed
WHILE_SHORT_S: Final = 1.0  # so that a calm of 10 s is made of ten looks
_FADES_BY: Final = 0.5  # a burst is remembered for a few looks


class Pace:
    """Tells the seconds until the next look from what the last ones saw."""

    __slots__ = ("_last", "_speed", "longest_s", "shortest_s")

    def __init__(self, shortest_s: float = SHORTEST_S, longest_s: float = LONGEST_S) -> None:
        self.shortest_s = shortest_s
        self.longest_s = longest_s
        self._last: tuple[int, float] | None = None
        self._speed = 0.0  # bytes per second, never negative

    def note(self, used_bytes: int, now: float) -> None:
        """Take one reading into account."""
        last, self._last = self._last, (used_bytes, now)
        if last is None or now <= last[1]:
            return
        speed = max(0.0, (used_bytes - last[0]) / (now - last[1]))
        self._speed = max(speed, self._speed * _FADES_BY)

    def seconds(self, room_bytes: float, entry_bytes: float, *, is_short: bool, is_pending: bool) -> float:
        """Return the seconds until the next look.

        Args:
            room_bytes: what is left to the next threshold; may be negative or infinite.
            entry_bytes: that threshold, as used bytes; may be infinite.
            is_short: whether the level is above `NORMAL`.
            is_pending: whether one sample waits to be confirmed by a second one.
        """
        if is_pending:
            return self.shortest_s

        wait = min(self.longest_s, WHILE_SHORT_S) if is_short else self.longest_s
        if room_bytes < entry_bytes < float("inf"):
            # In the last tenth before a threshold the waits shrink with the distance, however still it is now.
            wait = min(wait, 10 * self.longest_s * max(0.0, room_bytes) / entry_bytes) if not is_short else wait
        if self._speed > 0 and room_bytes > 0:
            wait = min(wait, room_bytes / self._speed / LOOKS_BEFORE_THE_THRESHOLD)
        return max(wait, self.shortest_s)
