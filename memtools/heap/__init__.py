"""Which objects live, which of them grow, and who keeps them alive."""

from memtools.heap._answers import Answer, Way, answer_in_steps, ways_to, why_alive, why_alive_async
from memtools.heap._census import Census, Growing, census, count_in_slices
from memtools.heap._growing import growing
from memtools.heap._longest import longest
from memtools.heap._places import line_of
from memtools.heap._weighing import weigh

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
