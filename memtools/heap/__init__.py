"""Which objects live, which of them grow, and what keeps them alive."""

from memtools.heap._census import Census, HeapGrowth, growth_between, heap_census
from memtools.heap._largest import largest_containers
from memtools.heap._why_alive import ReferrerPath, WhyAlive, why_alive, why_alive_async

__all__ = [
    "Census",
    "HeapGrowth",
    "ReferrerPath",
    "WhyAlive",
    "growth_between",
    "heap_census",
    "largest_containers",
    "why_alive",
    "why_alive_async",
]
