"""Keep a process inside its memory limit, and say so: thresholds, levels, clean-up, back-pressure, statistics."""

from memtools.monitor._gauges import Gauges
from memtools.monitor._started import monitors
from memtools.monitor._statistics import (
    AdmissionStatistics,
    CallbackStatistics,
    CollectorPauses,
    MonitorStatistics,
    OperationStatistics,
)

__all__ = [
    "AdmissionStatistics",
    "CallbackStatistics",
    "CollectorPauses",
    "Gauges",
    "MonitorStatistics",
    "OperationStatistics",
    "monitors",
]
