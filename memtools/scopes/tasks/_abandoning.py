"""Give up tasks that go on in spite of being cancelled: name them, and let them go.

Covers: the event, the warning, the strong reference that an abandoned task still needs, what it raises in the end.
Leaves to others: when a task is given up (`_task_scope`).
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from memtools.events import TaskAbandoned, emit

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger("memtools.scopes")
_SHOWN_AT_MOST: Final = 20

# The loop itself holds tasks weakly: without this an abandoned one could vanish in the middle of its work.
_still_running: "set[asyncio.Task[Any]]" = set()


def abandon(scope: str, tasks: "Sequence[tuple[str, asyncio.Task[Any]]]", grace_s: float) -> None:
    """Tell that these tasks are given up, by name, and keep them alive until they end.

    Args:
        scope: the name of the task scope.
        tasks: name and task of each.
        grace_s: how long they were waited for, in seconds.
    """
    for _, task in tasks:
        _still_running.add(task)
        task.add_done_callback(_report_end)

    names = [name for name, _ in tasks]
    for name in names:
        emit(TaskAbandoned(scope, name, grace_s))
    more = f" and {len(names) - _SHOWN_AT_MOST} more" if len(names) > _SHOWN_AT_MOST else ""
    _log.warning(
        "%s abandons %d of its tasks, which go on %.1f s after their cancellation: %s%s; "
        "look for blocking calls and for swallowed CancelledError in them",
        scope,
        len(names),
        grace_s,
        ", ".join(names[:_SHOWN_AT_MOST]),
        more,
    )


def _report_end(task: "asyncio.Task[Any]") -> None:
    _still_running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        # The scope has ended: nobody is left to raise it to.
        task.get_loop().call_exception_handler(
            {"message": f"abandoned task {task.get_name()} failed", "exception": error, "task": task}
        )
