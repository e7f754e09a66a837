"""Things that can give memory back, and the ladder that asks them: who they are, in which order, for how long."""

from memtools.cleanup._reclaimer import Ladder, TimeShare
from memtools.cleanup._registry import Shrinkable, SlicedStep, Step, register, registered, unregister
from memtools.cleanup._statistics import (
    Climb,
    LadderStatistics,
    StepStatistics,
    StepTaken,
    ThingStatistics,
    TrimStatistics,
)
from memtools.cleanup._steps import CollectAll, CollectYoung, TrimHeap, TrimRegistered, default_steps

__all__ = [
    "Climb",
    "CollectAll",
    "CollectYoung",
    "Ladder",
    "LadderStatistics",
    "Shrinkable",
    "SlicedStep",
    "Step",
    "StepStatistics",
    "StepTaken",
    "ThingStatistics",
    "TimeShare",
    "TrimHeap",
    "TrimRegistered",
    "TrimStatistics",
    "default_steps",
    "register",
    "registered",
    "unregister",
]
