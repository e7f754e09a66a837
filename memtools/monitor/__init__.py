"""Keep a process inside its memory limit, and say so: thresholds, levels, clean-up, back-pressure, statistics."""

from memtools.monitor._admission import Admission, AlreadyInside
from memtools.monitor._monitor import AlreadyStarted, MemoryMonitor, monitors
from memtools.monitor._report import Recommendation
from memtools.monitor._sampler import Gauges
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
