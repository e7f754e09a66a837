"""Detectors of other projects and of textbooks, against which the trend detector is held, on one trace at a time.

Each is fed the floor of each five minutes as a share of the limit, and says whether it suspects a leak now. What they
have in common is what all would have in a monitor: an alarm holds until the floor has given back half of the rise that
raised it, and the first half hour of a process is left out.
"""

from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

BLOCK_MINUTES = 5
SIX_HOURS = 72  # blocks
DAY = 288
SKIPPED = 6


class Detector(Protocol):
    def update(self, floor: float, used: float) -> bool: ...


class Static:
    """The critical threshold of every monitor: 90 % of the limit."""

    def update(self, floor: float, used: float) -> bool:
        return used >= 0.9


class LeastSquares:
    """Least squares over six hours: rising, a good fit, and the limit within a day."""

    def __init__(self) -> None:
        self._floors: deque[float] = deque(maxlen=SIX_HOURS)

    def update(self, floor: float, used: float) -> bool:
        floors = self._floors
        floors.append(floor)
        number = len(floors)
        if number < SIX_HOURS // 2:
            return False
        middle, mean = (number - 1) / 2, sum(floors) / number
        spread = number * (number**2 - 1) / 12
        covered = sum([(place - middle) * value for place, value in enumerate(floors)])
        total = sum([(value - mean) ** 2 for value in floors])
        slope = covered / spread
        fit = slope * covered / total if total else 0.0
        return slope > 0 and fit >= 0.8 and (1 - used) / slope <= DAY


class Precog:
    """After "Precog" (Gulenko and others, 2022): lines from each change point, the best of which must reach the limit.

    The windows end now and double; the line with the best fit counts, if it is steep and the limit within a day.
    """

    WINDOWS = (18, 36, 72, 144)

    def __init__(self) -> None:
        self._floors: deque[float] = deque(maxlen=self.WINDOWS[-1])

    def update(self, floor: float, used: float) -> bool:
        self._floors.append(floor)
        floors = list(self._floors)
        best, slope = 0.0, 0.0
        for window in self.WINDOWS:
            if len(floors) < window:
                break
            part = floors[-window:]
            middle, mean = (window - 1) / 2, sum(part) / window
            covered = sum([(place - middle) * value for place, value in enumerate(part)])
            total = sum([(value - mean) ** 2 for value in part])
            found = covered / (window * (window**2 - 1) / 12)
            fit = found * covered / total if total else 0.0
            if fit > best:
                best, slope = fit, found
        return best >= 0.9 and slope > 0 and (1 - used) / slope <= DAY


class MannKendall:
    """The test of Mann and Kendall over six hours, at the level of 0.1 %, and a rise of 2 % of the limit."""

    def __init__(self) -> None:
        self._floors: deque[float] = deque()
        self._sum = 0

    def update(self, floor: float, used: float) -> bool:
        floors = self._floors
        if len(floors) == SIX_HOURS:
            oldest = floors.popleft()
            self._sum -= sum([(value > oldest) - (value < oldest) for value in floors])
        self._sum += sum([(floor > value) - (floor < value) for value in floors])
        floors.append(floor)
        number = len(floors)
        if number < SIX_HOURS // 2:
            return False
        variance = number * (number - 1) * (2 * number + 5) / 18
        return self._sum > 3.29 * variance**0.5 and floor - floors[0] >= 0.02


class Holt:
    """Double exponential smoothing: the limit within a day, for an hour."""

    def __init__(self) -> None:
        self._level: float | None = None
        self._slope = 0.0
        self._running = 0

    def update(self, floor: float, used: float) -> bool:
        if self._level is None:
            self._level = floor
            return False
        before = self._level
        self._level = 0.1 * floor + 0.9 * (before + self._slope)
        self._slope = 0.02 * (self._level - before) + 0.98 * self._slope
        is_soon = self._slope > 0 and (1 - self._level) / self._slope <= DAY
        self._running = self._running + 1 if is_soon else 0
        return self._running >= 12


class River:
    """A drift detector of river, upwards only: a drift while the mean of an hour is above that of the hour before."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._drift = make()
        self._floors: deque[float] = deque(maxlen=24)

    def update(self, floor: float, used: float) -> bool:
        self._floors.append(floor)
        self._drift.update(floor)
        floors = list(self._floors)
        return bool(self._drift.drift_detected) and len(floors) == 24 and sum(floors[12:]) > sum(floors[:12])


def baselines() -> dict[str, Callable[[], Detector]]:
    """Return the baselines by name; those of river where it is installed."""
    found: dict[str, Callable[[], Detector]] = {
        "static 90 %": Static,
        "least squares, 6 h": LeastSquares,
        "Precog-like": Precog,
        "Mann-Kendall, 6 h": MannKendall,
        "Holt, limit within 24 h": Holt,
    }
    if find_spec("river") is not None:
        from river import drift

        found["ADWIN (river)"] = lambda: River(lambda: drift.ADWIN(delta=0.0002))
        found["Page-Hinkley (river)"] = lambda: River(
            lambda: drift.PageHinkley(min_instances=30, delta=0.005, threshold=1.0, mode="up")
        )
    return found
