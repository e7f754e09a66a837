"""Decorators that measure calls, limit their memory, and remember them or their results."""

from memtools.decorators._bounded_cache import CacheInfo, CallCacheStatistics, bounded_cache
from memtools.decorators._bounded_history import CallRecord, History, HistorySummary, bounded_history
from memtools.decorators._memory_budget import memory_budget
from memtools.decorators._profile_memory import FunctionMemory, FunctionStatistics, profile_memory
from memtools.decorators.memory_profiler import FunctionLines, LineMemory

__all__ = [
    "CacheInfo",
    "CallCacheStatistics",
    "CallRecord",
    "FunctionLines",
    "FunctionMemory",
    "FunctionStatistics",
    "History",
    "HistorySummary",
    "LineMemory",
    "bounded_cache",
    "bounded_history",
    "memory_budget",
    "profile_memory",
]
