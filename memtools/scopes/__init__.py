"""Scopes: blocks, calls and tasks that are charged to a name."""

from memtools.scopes._calls import Plan, call, follow, follower, generate, generate_async, named_as, sendable
from memtools.scopes._judging import check_refusing, judge, make_budget, parse_limit
from memtools.scopes._memory_scope import memory_scope
from memtools.scopes._naming import parse_name
from memtools.scopes.tasks import (
    Admission,
    Admit,
    ScopeFull,
    TaskFailure,
    TaskScopeStatistics,
    TaskUsage,
    task_scope,
)

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
