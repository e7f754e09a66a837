"""Containers that cannot grow without end."""

from memtools.structures._bounded_list import BoundedList, BoundedListStatistics
from memtools.structures.caches import (
    CacheStatistics,
    NotPicklable,
    NotWeaklyReferable,
    RecursiveFactory,
    WeakCache,
)

__all__ = [
    "BoundedList",
    "BoundedListStatistics",
    "CacheStatistics",
    "NotPicklable",
    "NotWeaklyReferable",
    "RecursiveFactory",
    "WeakCache",
]
