"""A monitor that keeps a process inside its memory limit."""

from memtools.monitor._admission import Admission
from memtools.monitor._exhaustion import Health
from memtools.monitor._monitor import MemoryMonitor, monitors
from memtools.monitor._report import Recommendation
from memtools.monitor._sampler import MemorySource
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
    "CallbackStatistics",
    "CollectorPauses",
    "Health",
    "MemoryMonitor",
    "MemorySource",
    "MonitorStatistics",
    "OperationStatistics",
    "Recommendation",
    "monitors",
]
