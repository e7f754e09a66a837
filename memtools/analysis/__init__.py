"""Pure verdicts on figures: no clock, no process, no object of the program."""

from memtools.analysis._anomalies import Anomaly, find_anomalies
from memtools.analysis._forecast import Forecast, forecast
from memtools.analysis._growth_by_call import GrowthVerdict, Leftover, Verdict
from memtools.analysis._headroom_rule import HeadroomRule, SuggestedThresholds
from memtools.analysis._leak_kind import LeakKind, LeakVerdict
from memtools.analysis._trend import OwnerTrend, Trend, judge_trend
from memtools.analysis._trend_detector import RisingFloor, TrendDetector

__all__ = [
    "Anomaly",
    "Forecast",
    "GrowthVerdict",
    "HeadroomRule",
    "LeakKind",
    "LeakVerdict",
    "Leftover",
    "OwnerTrend",
    "RisingFloor",
    "SuggestedThresholds",
    "Trend",
    "TrendDetector",
    "Verdict",
    "find_anomalies",
    "forecast",
    "judge_trend",
]
