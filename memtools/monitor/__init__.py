"""Keep a process inside its memory limit, and say so: thresholds, levels, clean-up, back-pressure, statistics."""

from memtools.monitor._admission import Admission, AlreadyInside
from memtools.monitor._advice import Recommendation
from memtools.monitor._gauges import Gauges
from memtools.monitor._monitor import MemoryMonitor
from memtools.monitor._settings import AlreadyStarted
from memtools.monitor._started import monitors
from memtools.monitor._statistics import (
    AdmissionStatistics,
    CallbackStatistics,
    CollectorPauses,
    MonitorStatistics,
    OperationStatistics,
)

__all__ = [
    "Admission",
    "AdmissionStatistics",
    "AlreadyInside",
    "AlreadyStarted",
    "CallbackStatistics",
    "CollectorPauses",
    "Gauges",
    "MemoryMonitor",
    "MonitorStatistics",
    "OperationStatistics",
    "Recommendation",
    "monitors",
]
