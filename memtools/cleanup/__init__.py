"""Things that can give memory back, and the ladder that asks them: who they are, in which order, for how long."""

from memtools.cleanup._collect import CollectAll, CollectYoung
from memtools.cleanup._default_steps import default_steps
from memtools.cleanup._ladder import Ladder
from memtools.cleanup._records import (
    Climb,
    LadderStatistics,
    StepStatistics,
    StepTaken,
    ThingStatistics,
    TrimStatistics,
)
from memtools.cleanup._register import Shrinkable, register, registered, unregister
from memtools.cleanup._step import SlicedStep, Step
from memtools.cleanup._time_share import TimeShare
from memtools.cleanup._trim import TrimRegistered
from memtools.cleanup._trim_heap import TrimHeap

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
