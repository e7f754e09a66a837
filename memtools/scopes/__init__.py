"""Scopes: blocks, calls and tasks whose memory is charged to a name."""

from memtools.errors import ScopeFull
from memtools.scopes._admission import Admission
from memtools.scopes._memory_scope import memory_scope
from memtools.scopes._task_scope import task_scope
from memtools.scopes._task_statistics import TaskFailure, TaskScopeStatistics, TaskUsage

__all__ = [
    "Admission",
    "ScopeFull",
    "TaskFailure",
    "TaskScopeStatistics",
    "TaskUsage",
    "memory_scope",
    "task_scope",
]
