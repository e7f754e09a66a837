"""Decorators that measure, bound and remember calls."""

from memtools.decorators._bounded_history import bounded_history
from memtools.decorators._call_records import CallRecord, History, HistorySummary
from memtools.decorators._function_memory import FunctionMemory, FunctionStatistics
from memtools.decorators._line_memory import FunctionLines, LineMemory
from memtools.decorators._memory_budget import memory_budget
from memtools.decorators._profile_memory import profile_memory

__all__ = [
    "CallRecord",
    "FunctionLines",
    "FunctionMemory",
    "FunctionStatistics",
    "History",
    "HistorySummary",
    "LineMemory",
    "bounded_history",
    "memory_budget",
    "profile_memory",
]
