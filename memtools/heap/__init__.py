"""Which objects live, which of them grow, and what keeps them alive."""

from memtools.heap._census import Census, HeapGrowth, count_in_slices, growth_between, heap_census, largest_containers
from memtools.heap._describe import source_line
from memtools.heap._inspect import shallow_size
from memtools.heap._why_alive import ReferrerPath, WhyAlive, answer_in_steps, paths_to, why_alive, why_alive_async

__all__ = [
    "Census",
    "HeapGrowth",
    "ReferrerPath",
    "WhyAlive",
    "answer_in_steps",
    "count_in_slices",
    "growth_between",
    "heap_census",
    "largest_containers",
    "paths_to",
    "shallow_size",
    "source_line",
    "why_alive",
    "why_alive_async",
]
