"""Give memory back when it runs short.

The registry knows the objects that can shrink; the reclaimer runs the clean-up steps, the cheapest first, and never for
more than a small share of wall time.
"""

from memtools.cleanup._reclaimer import Reclaimer
from memtools.cleanup._registry import Shrinkable, SlicedStep, Step, register, registered, unregister
from memtools.cleanup._statistics import (
    ReclaimerStatistics,
    ReclaimResult,
    ShrinkableStatistics,
    ShrinkStatistics,
    StepResult,
    StepStatistics,
)
from memtools.cleanup._steps import CollectAll, CollectYoung, ShrinkRegistered, TrimHeap, default_steps

__all__ = [
    "CollectAll",
    "CollectYoung",
    "ReclaimResult",
    "Reclaimer",
    "ReclaimerStatistics",
    "ShrinkRegistered",
    "ShrinkStatistics",
    "Shrinkable",
    "ShrinkableStatistics",
    "SlicedStep",
    "Step",
    "StepResult",
    "StepStatistics",
    "TrimHeap",
    "default_steps",
    "register",
    "registered",
    "unregister",
]
