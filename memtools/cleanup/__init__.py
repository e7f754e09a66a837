"""Things that can give memory back, and the ladder that asks them: who they are, in which order, for how long."""

from memtools.cleanup._reclaimer import Reclaimer, TokenBucket
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
    "TokenBucket",
    "TrimHeap",
    "default_steps",
    "register",
    "registered",
    "unregister",
]
