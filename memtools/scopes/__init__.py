"""Scopes: blocks, calls and tasks that are charged to a name."""

from memtools.scopes._admission import Admission, Admit
from memtools.scopes._budgets import check_usage, make_budget, parse_budget, require_refusals
from memtools.scopes._calls import (
    CallOptions,
    call,
    copy_name,
    coroutine_tracker,
    ensure_coroutine,
    generate,
    generate_async,
    track_coroutine,
)
from memtools.scopes._memory_scope import memory_scope, parse_name
from memtools.scopes._task_scope import task_scope
from memtools.scopes._task_statistics import ScopeFull, TaskFailure, TaskScopeStatistics, TaskUsage

__all__ = [
    "Admission",
    "Admit",
    "CallOptions",
    "ScopeFull",
    "TaskFailure",
    "TaskScopeStatistics",
    "TaskUsage",
    "call",
    "check_usage",
    "copy_name",
    "coroutine_tracker",
    "ensure_coroutine",
    "generate",
    "generate_async",
    "make_budget",
    "memory_scope",
    "parse_budget",
    "parse_name",
    "require_refusals",
    "task_scope",
    "track_coroutine",
]
