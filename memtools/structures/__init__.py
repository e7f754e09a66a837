"""Containers that cannot grow without end."""

from memtools.errors import NotPicklable, NotWeakReferenceable, RecursiveFactory
from memtools.structures._bounded_list import BoundedList, BoundedListStatistics
from memtools.structures._cache_store import CacheStatistics
from memtools.structures._weak_cache import WeakCache

__all__ = [
    "BoundedList",
    "BoundedListStatistics",
    "CacheStatistics",
    "NotPicklable",
    "NotWeakReferenceable",
    "RecursiveFactory",
    "WeakCache",
]
