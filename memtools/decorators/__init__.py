"""Decorators that measure, bound and remember calls."""

from memtools.decorators._bounded_history import bounded_history
from memtools.decorators._call_records import CallRecord, History, HistorySummary
from memtools.decorators._function_memory import FunctionMemory, FunctionStatistics
from memtools.decorators._memory_budget import memory_budget
from memtools.decorators._profile_memory import profile_memory

__all__ = [
    "CallRecord",
    "FunctionMemory",
    "FunctionStatistics",
    "History",
    "HistorySummary",
    "bounded_history",
    "memory_budget",
    "profile_memory",
]
