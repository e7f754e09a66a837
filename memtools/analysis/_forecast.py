"""Time to the limit: the widest level of floors that rises, extrapolated, with an interval.

The slope is that of Theil and Sen. Where the floors span more than a day it comes only from pairs of the same time of
day (R. M. Hirsch, J. R. Slack, R. A. Smith, Techniques of trend analysis, Water Resources Research 18, 1982), so that a
daily cycle cancels out. Floors that were flat at first get a line that begins later, and floors whose slope grows from
third to third a parabola, where that fits far better. The process dies at its peaks: the typical height of the peaks
above the line is taken from the headroom. The interval is that of a block jackknife (H. R. Künsch, Annals of Statistics
17, 1989), widened by a tenth, since the future need not go on as the past did.
"""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Final, Protocol, TypeAlias

from memtools._records import as_dict, record
from memtools.analysis._robust_statistics import median, noise_of, theil_sen
from memtools.units import format_duration, format_size

Points: TypeAlias = list[tuple[int, float]]

_MIN_FLOORS: Final = 12
_MIN_TAU: Final = 0.7
_MIN_RISE: Final = 0.02  # of the limit
_MIN_RISE_IN_NOISE: Final = 3.0
_PEAKS: Final = 0.75  # the share of the peaks that the typical one is above
_STICK_GAIN: Final = 0.25  # of the squared error of a line, for a line that begins later
_PARABOLA_GAIN: Final = 0.6
_MIN_SINCE_ONSET: Final = 8
_PARTS: Final = 8  # of the jackknife
_Z: Final = 1.28  # for nine in ten on each side
_BEYOND: Final = 0.1  # of the time, added to the interval on each side
_DAY_S: Final = 86_400.0
_LAGS: Final = (1, 2)  # days that may lie between two floors of the same time of day
_MIN_BEYOND_LAG: Final = 4
_NEVER: Final = 0.95  # an interval of this relative width has no end
_MAX_S: Final = 366 * _DAY_S


@record
class Forecast:
    """When a process reaches its limit, if it goes on as it does.

    Attributes:
        rate_bytes_per_s: how fast the floor rises now; 0.0 if it does not.
        seconds_to_limit: seconds until the limit; None if nothing rises, no limit is known, or it is over a year.
        earliest_s: probably not before: in some 85 of 100 cases the limit is reached later. None as above.
        latest_s: probably before; None as above, and where there is no telling.
        floor_bytes: the floor now, by the fit.
        evidence: what this rests on, as a sentence.
    """

    rate_bytes_per_s: float
    seconds_to_limit: float | None
    earliest_s: float | None
    latest_s: float | None
    floor_bytes: int
    evidence: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        if self.seconds_to_limit is None:
            return f"no limit in sight: {self.evidence}"
        before = "" if self.earliest_s is None else f", probably not before {format_duration(self.earliest_s)}"
        return f"limit in about {format_duration(self.seconds_to_limit)}{before}"


class Level(Protocol):
    """Floors of one level of a detector."""

    @property
    def block_s(self) -> float:
        """The seconds that each floor stands for."""
        ...

    @property
    def unsettled(self) -> int:
        """How many of the oldest blocks belong to the start of the process."""
        ...

    @property
    def floors(self) -> Sequence[float]:
        """The lowest use of each block."""
        ...

    @property
    def peaks(self) -> Sequence[float]:
        """The highest use of each block."""
        ...


@record
class _Series:
    """The floors and peaks that the forecast rests on.

    Attributes:
        floors: in bytes, equally spaced.
        peaks: in bytes.
        block_s: seconds from one to the next.
        lag: blocks in a day, or two, where only floors of the same time of day are compared; 0 for all.
    """

    floors: tuple[float, ...]
    peaks: tuple[float, ...]
    block_s: float
    lag: int


@record
class _Fit:
    """The course of the floors from here on: `line + rate * steps + acceleration / 2 * steps**2`.

    Attributes:
        line: where the fit is now, in bytes.
        rate: bytes per block.
        acceleration: bytes per block and block; 0.0 for a line.
        over: how far the typical peak is above the fit.
    """

    line: float
    rate: float
    acceleration: float
    over: float

    def blocks_to(self, limit: float) -> float:
        """Return the blocks until the peaks reach the limit."""
        room = max(0.0, limit - self.line - self.over)
        if self.acceleration <= 0:
            return room / self.rate
        return (sqrt(self.rate**2 + 2 * self.acceleration * room) - self.rate) / self.acceleration


def forecast(levels: Iterable[Level], limit_bytes: int | None) -> Forecast:
    """Return when the limit is reached, by the levels of a `TrendDetector`; withheld where nothing rises.

    Args:
        levels: the finest first.
        limit_bytes: what the process may use; None if unknown.

    Cost: 2 to 5 ms.
    """
    finest_first = list(levels)
    newest = next((int(level.floors[-1]) for level in finest_first if level.floors), 0)
    known = [_settled(level) for level in finest_first]
    for place in range(len(known) - 1, -1, -1):
        series = _with_lag(known[place])
        if not _rises(series, limit_bytes):
            continue
        onset = _onset(series.floors)
        if onset is not None:
            series = _since(known[: place + 1], (len(series.floors) - 1 - onset) * series.block_s) or series
        fit = _fit(series)
        if fit.rate > 0:
            return _to_forecast(series, fit, limit_bytes)
    return Forecast(0.0, None, None, None, newest, "the floor does not rise at any level")


def _settled(level: Level) -> _Series:
    start = level.unsettled
    return _Series(tuple(level.floors[start:]), tuple(level.peaks[start:]), level.block_s, 0)


def _with_lag(series: _Series) -> _Series:
    number = len(series.floors)
    for days in _LAGS:
        lag = days * _DAY_S / series.block_s
        if lag >= _PARTS and lag.is_integer() and number >= lag + _MIN_BEYOND_LAG:
            return _Series(series.floors, series.peaks, series.block_s, int(lag))
    return series


def _rises(series: _Series, limit_bytes: int | None) -> bool:
    floors = series.floors
    if len(floors) < _MIN_FLOORS:
        return False
    slopes = _slopes(list(enumerate(floors)), series.lag)
    if sum((slope > 0) - (slope < 0) for slope in slopes) < _MIN_TAU * len(slopes):
        return False
    rise = median(slopes) * (len(floors) - 1)
    if rise <= 0 or rise < _MIN_RISE * (limit_bytes or 0):
        return False
    return series.lag > 0 or rise >= _MIN_RISE_IN_NOISE * noise_of(floors)


def _slopes(points: Points, lag: int) -> list[float]:
    return [
        (later - value) / (at - start)
        for place, (start, value) in enumerate(points)
        for at, later in points[place + 1 :]
        if not lag or (at - start) % lag == 0
    ]


def _onset(floors: Sequence[float]) -> int | None:
    """Return the place at which floors that were flat begin to rise; None where a line fits nearly as well."""
    number = len(floors)
    by_place = {
        place: _squared_error([max(0, one - place) for one in range(number)], floors) for place in range(3, number - 3)
    }
    if not by_place:
        return None
    best = min(by_place, key=by_place.__getitem__)
    others = min(_squared_error(list(range(number)), floors) * _STICK_GAIN, _parabola(floors)[0])
    return best if by_place[best] < others else None


def _since(levels: list[_Series], age_s: float) -> _Series | None:
    """Return what the widest level has since the onset; None where no level has enough."""
    for level in reversed(levels):
        number = min(int(age_s / level.block_s), len(level.floors))
        if number >= _MIN_SINCE_ONSET:
            return _Series(level.floors[-number:], level.peaks[-number:], level.block_s, 0)
    return None


def _fit(series: _Series) -> _Fit:
    floors, number = series.floors, len(series.floors)
    curved = _curve(series)
    if curved is not None:
        return curved
    slope = median(_slopes(list(enumerate(floors)), series.lag))
    start = median([floor - slope * place for place, floor in enumerate(floors)])
    above = [peak - start - slope * place for place, peak in enumerate(series.peaks)]
    return _Fit(start + slope * (number - 1), slope, 0.0, _typical(above))


def _curve(series: _Series) -> _Fit | None:
    """Return a parabola where the slopes of the thirds agree that the rise gets faster, and it fits much better."""
    floors, number = series.floors, len(series.floors)
    third = number // 3
    error, start, slope, bend = _parabola(floors)
    if third < 3 or bend <= 0 or error >= _PARABOLA_GAIN * _squared_error(list(range(number)), floors):
        return None
    first, second, last = (
        theil_sen(part) for part in (floors[: third + 1], floors[third : 2 * third + 1], floors[-third - 1 :])
    )
    if not 0 <= first < second < last:
        return None
    half = (number - 1) / 2
    above = [
        peak - start - slope * (place - half) - bend * (place - half) ** 2 for place, peak in enumerate(series.peaks)
    ]
    return _Fit(start + slope * half + bend * half**2, slope + 2 * bend * half, 2 * bend, _typical(above))


def _typical(above: list[float]) -> float:
    return sorted(above)[round(_PEAKS * (len(above) - 1))]


def _squared_error(places: Sequence[float], values: Sequence[float]) -> float:
    number = len(values)
    middle, mean = sum(places) / number, sum(values) / number
    spread = sum([(place - middle) ** 2 for place in places])
    slope = sum([(place - middle) * value for place, value in zip(places, values, strict=True)]) / spread
    return sum([(value - mean - slope * (place - middle)) ** 2 for place, value in zip(places, values, strict=True)])


def _parabola(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the squared error, and the value, slope and bend in the middle, of the least-squares parabola."""
    number = len(values)
    places = [place - (number - 1) / 2 for place in range(number)]
    second, fourth = sum([place**2 for place in places]), sum([place**4 for place in places])
    total = sum(values)
    by_place = sum([place * value for place, value in zip(places, values, strict=True)])
    by_square = sum([place**2 * value for place, value in zip(places, values, strict=True)])
    bend = (number * by_square - second * total) / (number * fourth - second**2)
    slope, start = by_place / second, (total - bend * second) / number
    error = sum([(value - start - slope * at - bend * at**2) ** 2 for at, value in zip(places, values, strict=True)])
    return error, start, slope, bend


def _relative_error(series: _Series) -> float:
    """Return the standard error of the slope by a block jackknife, as a share of the slope."""
    points = list(enumerate(series.floors))
    width = max(1, len(points) // _PARTS)
    slopes: list[float] = []
    for start in range(0, len(points) - width + 1, width):
        rest = _slopes(points[:start] + points[start + width :], series.lag)
        if rest:
            slopes.append(median(rest))
    mean = sum(slopes) / len(slopes)
    variance = (len(slopes) - 1) / len(slopes) * sum([(slope - mean) ** 2 for slope in slopes])
    return sqrt(variance) / mean if mean > 0 else 1.0


def _to_forecast(series: _Series, fit: _Fit, limit_bytes: int | None) -> Forecast:
    rate, span_s = fit.rate / series.block_s, (len(series.floors) - 1) * series.block_s
    shape = "ever faster" if fit.acceleration else "steadily"
    evidence = f"the floor rises {shape} by {format_size(rate * 3600)}/h, as seen over {format_duration(span_s)}"
    if limit_bytes is None:
        return Forecast(rate, None, None, None, int(fit.line), f"{evidence}; no limit is known")
    seconds = fit.blocks_to(limit_bytes) * series.block_s
    if seconds > _MAX_S:
        return Forecast(rate, None, None, None, int(fit.line), f"{evidence}; the limit is over a year away")
    width = _Z * _relative_error(series) + _BEYOND
    latest = seconds / (1 - width) if width < _NEVER else None
    return Forecast(rate, seconds, seconds / (1 + width), latest, int(fit.line), evidence)
