"""Which objects live, which of them grow, and who keeps them alive."""

from memtools.heap._answers import Answer, Way, answer_in_steps, why_alive, why_alive_async
from memtools.heap._census import Census, Growing, census, count_in_slices
from memtools.heap._growing import growing

__all__ = [
    "Answer",
    "Census",
    "Growing",
    "Way",
    "answer_in_steps",
    "census",
    "count_in_slices",
    "growing",
    "why_alive",
    "why_alive_async",
]
