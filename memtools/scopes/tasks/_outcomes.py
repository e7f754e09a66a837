"""How the tasks of one scope ended: counts by name, errors to be raised, failures on record, the last results.

Covers: everything that is taken from a task at its end, so that the task itself can be let go. Leaves to others: what
follows for the scope (`_task_scope`).
"""

import logging
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from memtools.scopes.tasks._accounts import OTHER, TaskAccount, TaskAccounts
from memtools.scopes.tasks._records import TaskFailure, describe_failure

if TYPE_CHECKING:
    import asyncio

MAX_FAILURES: Final = 256

_log = logging.getLogger("memtools.scopes")


class Outcomes:
    """What is left of tasks that have ended.

    Args:
        scope: the name of the scope, for the log.
        keep_results: how many results to keep.

    Attributes:
        accounts: counts by name.
        errors: exceptions that the scope will raise at its end.
        base_error: the first `SystemExit` or `KeyboardInterrupt` among them.
        failures: the last failures that were recorded, in words.
        results: the last results.
    """

    __slots__ = ("_keeps_results", "_scope", "accounts", "base_error", "errors", "failures", "results")

    def __init__(self, scope: str, keep_results: int) -> None:
        self._scope = scope
        self._keeps_results = keep_results > 0
        self.accounts = TaskAccounts()
        self.errors: list[BaseException] = []
        self.base_error: BaseException | None = None
        self.failures: deque[TaskFailure] = deque(maxlen=MAX_FAILURES)
        self.results: deque[object] = deque(maxlen=keep_results)

    def count(self, task: "asyncio.Task[Any]", account: TaskAccount, began: float) -> BaseException | None:
        """Count a task that is done; return its exception, if it failed.

        Args:
            task: the task; what it returns is kept only if the scope keeps results.
            account: where it is counted.
            began: when it began (`perf_counter`); 0.0 if it never did.
        """
        account.running -= 1
        if began:
            account.duration_s += perf_counter() - began
        if task.cancelled():
            account.cancelled += 1
            return None

        error = task.exception()
        if error is not None:
            account.failed += 1
            return error
        account.finished += 1
        if self._keeps_results:
            self.results.append(task.result())
        return None

    def keep_error(self, error: BaseException) -> None:
        """Keep an exception until the scope raises it."""
        self.errors.append(error)
        if self.base_error is None and is_base_error(error):
            self.base_error = error

    def record(self, name: str, account: TaskAccount, error: BaseException) -> None:
        """Put a failure on record, in words; the first of a name is logged."""
        failure = describe_failure(name, error)
        self.failures.append(failure)
        if account.failed == 1:
            _log.warning("%s: a task failed, the others go on: %s (later ones are only recorded)", self._scope, failure)

    def forget_errors(self) -> None:
        """Drop what was to be raised: exceptions hold frames, and frames hold everything."""
        self.errors = []
        self.base_error = None


def is_base_error(error: BaseException) -> bool:
    """Return whether an exception ends the program, and is therefore raised bare."""
    return isinstance(error, (SystemExit, KeyboardInterrupt))


def task_name(task: "asyncio.Task[Any]", account: TaskAccount) -> str:
    """Return what a task is called in words: its account's name, or its own where many share the account."""
    return account.name if account.name != OTHER else task.get_name()
