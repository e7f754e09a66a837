"""A cache that never keeps the last reference: the tiers, who makes a missing value, who waits for it."""

from memtools.structures.caches._errors import NotPicklable, NotWeaklyReferable, RecursiveFactory
from memtools.structures.caches._statistics import CacheStatistics
from memtools.structures.caches._weak_cache import WeakCache

__all__ = [
    "CacheStatistics",
    "NotPicklable",
    "NotWeaklyReferable",
    "RecursiveFactory",
    "WeakCache",
]
