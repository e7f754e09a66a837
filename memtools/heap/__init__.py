"""Which objects live, which of them grow, and who keeps them alive."""

from memtools.heap._census import Census, Growing, census, count_in_slices, growing, longest
from memtools.heap._describe import line_of
from memtools.heap._inspect import weigh
from memtools.heap._why_alive import Answer, Way, answer_in_steps, ways_to, why_alive, why_alive_async

__all__ = [
    "Answer",
    "Census",
    "Growing",
    "Way",
    "answer_in_steps",
    "census",
    "count_in_slices",
    "growing",
    "line_of",
    "longest",
    "ways_to",
    "weigh",
    "why_alive",
    "why_alive_async",
]
