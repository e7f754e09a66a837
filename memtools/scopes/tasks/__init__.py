"""A block whose tasks end with it: their turns, their ends, what each name used."""

from memtools.scopes.tasks._admission import Admission, Admit
from memtools.scopes.tasks._records import ScopeFull, TaskFailure, TaskScopeStatistics, TaskUsage
from memtools.scopes.tasks._task_scope import task_scope

__all__ = [
    "Admission",
    "Admit",
    "ScopeFull",
    "TaskFailure",
    "TaskScopeStatistics",
    "TaskUsage",
    "task_scope",
]
