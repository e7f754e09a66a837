"""Memory over time: a bounded run of readings, with the events between them."""

from memtools.timelines._samples import Sample
from memtools.timelines._timeline import Timeline, TimelineEvent

__all__ = [
    "Sample",
    "Timeline",
    "TimelineEvent",
]
