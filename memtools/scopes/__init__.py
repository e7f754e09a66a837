"""Scopes: blocks, calls and tasks that are charged to a name."""

from memtools.scopes._admission import Admission, Admit
from memtools.scopes._budgets import check_refusing, judge, make_budget, parse_limit
from memtools.scopes._calls import Plan, call, follow, follower, generate, generate_async, named_as, sendable
from memtools.scopes._memory_scope import memory_scope, parse_name
from memtools.scopes._task_scope import task_scope
from memtools.scopes._task_statistics import ScopeFull, TaskFailure, TaskScopeStatistics, TaskUsage

__all__ = [
    "Admission",
    "Admit",
    "Plan",
    "ScopeFull",
    "TaskFailure",
    "TaskScopeStatistics",
    "TaskUsage",
    "call",
    "check_refusing",
    "follow",
    "follower",
    "generate",
    "generate_async",
    "judge",
    "make_budget",
    "memory_scope",
    "named_as",
    "parse_limit",
    "parse_name",
    "sendable",
    "task_scope",
]
