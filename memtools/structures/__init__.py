"""Containers with a bounded size."""

from memtools.structures._bounded_dict import BoundedDict, BoundedDictStatistics
from memtools.structures._bounded_list import BoundedList, BoundedListStatistics
from memtools.structures._cache_store import CacheStatistics
from memtools.structures._weak_cache import WeakCache

__all__ = [
    "BoundedDict",
    "BoundedDictStatistics",
    "BoundedList",
    "BoundedListStatistics",
    "CacheStatistics",
    "WeakCache",
]
