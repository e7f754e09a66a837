"""The judgement on a whole timeline: what rises, when the limit is reached, which owner it is, what was odd."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from memtools._records import as_dict, record
from memtools.analysis._anomalies import Anomaly, find_anomalies
from memtools.analysis._forecast import Forecast, forecast
from memtools.analysis._headroom_rule import HeadroomRule, SuggestedThresholds
from memtools.analysis._robust_statistics import kendall_tau, median, theil_sen
from memtools.analysis._trend_detector import RisingFloor, Sensitivity, TrendDetector
from memtools.timelines import Sample, TimelineEvent
from memtools.units import format_duration, format_size

OwnerPoints = Sequence[tuple[float, int]]

_MIN_POINTS: Final = 12
_MAX_POINTS: Final = 64  # of an owner that are judged
_MIN_TAU: Final = 0.7
_MIN_RISE_BYTES: Final = 1 << 20
_MIN_SECOND_HALF: Final = 0.7  # of the slope of the first half


@record
class OwnerTrend:
    """An account whose live bytes rise.

    Attributes:
        name: the account, as the ledger has it; escape it before printing.
        bytes_per_s: how fast.
        rise_bytes: how far, within `seconds`.
        seconds: the time in which it did.
        live_bytes: its live bytes now.
        text: the same as a sentence.
    """

    name: str
    bytes_per_s: float
    rise_bytes: int
    seconds: float
    live_bytes: int
    text: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


@record
class Trend:
    """What a timeline says.

    Attributes:
        rising: the floor that rises at its end; None if none does.
        forecast: when the limit is reached; without figures where nothing rises.
        thresholds: suggested thresholds; None without a limit, and for less than three hours.
        owners: the accounts whose live bytes rise, the fastest first.
        anomalies: level shifts, bursts and deploys, oldest first.
    """

    rising: RisingFloor | None
    forecast: Forecast
    thresholds: SuggestedThresholds | None
    owners: tuple[OwnerTrend, ...]
    anomalies: tuple[Anomaly, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "rising": None if self.rising is None else self.rising.to_dict(),
            "forecast": self.forecast.to_dict(),
            "thresholds": None if self.thresholds is None else self.thresholds.to_dict(),
            "owners": [owner.to_dict() for owner in self.owners],
            "anomalies": [anomaly.to_dict() for anomaly in self.anomalies],
        }


def judge_trend(
    samples: Iterable[Sample],
    *,
    limit_bytes: int | None = None,
    events: Iterable[TimelineEvent] = (),
    owners: Mapping[str, OwnerPoints] | None = None,
    sensitivity: Sensitivity = "balanced",
) -> Trend:
    """Return the judgement on a timeline, as a monitor that had sampled it would have come to it.

    ```python
    from memtools.analysis import judge_trend
    from memtools.timelines import Timeline

    timeline = Timeline(limit_bytes=600 << 20)
    for minute in range(240):
        timeline.add((200 + minute) << 20, at_s=60.0 * minute)
    trend = judge_trend(timeline.samples, limit_bytes=timeline.limit_bytes)
    print(trend.forecast)
    ```

    Args:
        samples: oldest first.
        limit_bytes: what the process may use; without it nothing is said to rise.
        events: those of kind `"deploy"` are looked at.
        owners: live bytes over time, as `Timeline.owners`.
        sensitivity: as in `TrendDetector`.

    Cost: some 0.1 s for a week of minutes.
    """
    known = tuple(samples)
    detector, rule = TrendDetector(sensitivity), HeadroomRule()
    for sample in known:
        lowest, highest = sample.lowest_bytes, sample.highest_bytes
        detector.observe(sample.at_s, lowest, highest_bytes=highest, limit_bytes=limit_bytes, blocks=sample.blocks)
        rule.observe(sample.at_s, lowest, highest_bytes=highest)
    return Trend(
        detector.rising,
        forecast(detector.levels, limit_bytes),
        rule.suggestion(limit_bytes),
        rising_owners(owners or {}),
        find_anomalies(known, events, limit_bytes=limit_bytes),
    )


def rising_owners(owners: Mapping[str, OwnerPoints]) -> tuple[OwnerTrend, ...]:
    """Return the accounts whose live bytes rise steadily and go on, the fastest first; full caches do not."""
    found = (_owner_trend(name, points[-_MAX_POINTS:]) for name, points in owners.items())
    return tuple(sorted(filter(None, found), key=lambda owner: (-owner.bytes_per_s, owner.name)))


def _owner_trend(name: str, points: OwnerPoints) -> OwnerTrend | None:
    if len(points) < _MIN_POINTS:
        return None
    live = [float(size) for _, size in points]
    seconds = points[-1][0] - points[0][0]
    rise = median(live[-3:]) - median(live[:3])
    half = len(live) // 2
    if rise < _MIN_RISE_BYTES or seconds <= 0 or kendall_tau(live) < _MIN_TAU:
        return None
    if theil_sen(live[half:]) < _MIN_SECOND_HALF * theil_sen(live[:half]):
        return None
    rate = theil_sen(live) * (len(live) - 1) / seconds
    text = f"{name} grows by {format_size(rate * 3600)}/h: {format_size(rise)} in {format_duration(seconds)}"
    return OwnerTrend(name, rate, int(rise), seconds, int(live[-1]), text)
