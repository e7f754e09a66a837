"""CPython's own suite for task groups, run with a `task_scope` in the place of `asyncio.TaskGroup`.

Each interpreter brings its own version of the suite. Ours follows the rules of 3.13 (gh-116720) on all of them; what
the older suites pin differently is named below. Of what gh-116720 changed they pin nothing.
"""

import asyncio
import sys
import unittest
from typing import Any

import pytest

from memtools.scopes import task_scope

pytest.importorskip("test.test_asyncio.test_taskgroups", reason="this Python comes without its own test suite")

from asyncio import taskgroups

from test.test_asyncio import test_taskgroups

SUITES = [
    kind
    for kind in vars(test_taskgroups).values()
    if isinstance(kind, type) and issubclass(kind, unittest.TestCase) and kind.__module__ == test_taskgroups.__name__
]
BEFORE_CLOSING = "before 3.13 a refused coroutine was left open, and the suite awaits it; ours is closed, as in 3.13"


class ScopeAsGroup(task_scope):
    """The one private name of a TaskGroup that the suite looks at."""

    @property
    def _tasks(self) -> dict[asyncio.Task[Any], Any]:
        return self._unfinished_tasks()


@pytest.fixture(autouse=True)
def scopes_for_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskgroups, "TaskGroup", ScopeAsGroup)
    monkeypatch.setattr(asyncio, "TaskGroup", ScopeAsGroup)


class TestTaskScope(test_taskgroups.TestTaskGroup):  # type: ignore[misc]  # typeshed knows no `test`
    if sys.version_info < (3, 13):

        @unittest.skip(BEFORE_CLOSING)
        def test_taskgroup_no_create_task_after_failure(self) -> None: ...

        @unittest.skip(BEFORE_CLOSING)
        def test_taskgroup_finished(self) -> None: ...

        @unittest.skip(BEFORE_CLOSING)
        def test_taskgroup_not_entered(self) -> None: ...

        @unittest.skip(BEFORE_CLOSING)
        def test_taskgroup_without_parent_task(self) -> None: ...


OURS: list[type[unittest.TestCase]] = [TestTaskScope]
if sys.version_info >= (3, 14):

    class TestTaskScopeOfEagerTasks(test_taskgroups.TestEagerTaskTaskGroup):  # type: ignore[misc]  # as above
        pass

    OURS.append(TestTaskScopeOfEagerTasks)


def test_suite_is_not_empty_and_runs_on_task_scope() -> None:
    counts = [unittest.defaultTestLoader.loadTestsFromTestCase(kind).countTestCases() for kind in OURS]

    assert [kind.__name__ for kind in SUITES if not any(issubclass(our, kind) for our in OURS)] == []
    assert min(counts) > 30
    assert taskgroups.TaskGroup is ScopeAsGroup
