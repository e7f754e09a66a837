"""What a task scope tells: its statistics, the usage of its tasks by name, the failures it recorded.

Records hold numbers and text, never tasks, results, exceptions or frames: whoever keeps them keeps nothing else alive.
"""

import time
from collections.abc import Callable
from typing import Final

from memtools.errors import MemtoolsError
from memtools.records import as_dict, record
from memtools.units import format_size

MAX_MESSAGE_LENGTH: Final = 500


class ScopeFull(MemtoolsError, RuntimeError):
    """A task was refused because as many as may wait were waiting already; its coroutine has been closed.

    Attributes:
        scope: the name of the task scope.
        waiting: how many tasks waited for their turn.
        max_pending: how many may.
    """

    def __init__(self, scope: str, waiting: int, max_pending: int) -> None:
        super().__init__(scope, waiting, max_pending)
        self.scope = scope
        self.waiting = waiting
        self.max_pending = max_pending

    def __str__(self) -> str:
        return f"{self.scope} takes no more tasks: {self.waiting} are waiting, max_pending={self.max_pending}"


@record
class TaskFailure:
    """One task that failed, in words.

    Attributes:
        name: the task's name, or its coroutine's where it was given none.
        kind: the name of the exception's type, with its module unless it is a built-in.
        message: the exception's text, cut to 500 characters.
        at: when the scope learnt of it, in seconds since the epoch.
    """

    name: str
    kind: str
    message: str
    at: float

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}: {self.message}"


@record
class TaskScopeStatistics:
    """How the tasks of one scope fared, up to one moment.

    Attributes:
        name: the scope's name.
        state: `"not entered"`, `"open"`, `"shutting down"` or `"finished"`.
        limit: how many tasks may run at once, or None.
        running: tasks that have been let in and have not ended.
        waiting: tasks that wait for their turn before their first step.
        finished: tasks that returned.
        failed: tasks that raised.
        cancelled: tasks that ended by cancellation.
        abandoned: tasks that went on for longer than the grace after their cancellation.
    """

    name: str
    state: str
    limit: int | None
    running: int
    waiting: int
    finished: int
    failed: int
    cancelled: int
    abandoned: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


@record
class TaskUsage:
    """What the tasks of one name used together, up to one moment.

    Attributes:
        name: the tasks' name, or their coroutines' where they were given none.
        started: how many were created.
        running: how many of them have not ended (those that wait included).
        finished: how many returned.
        failed: how many raised.
        cancelled: how many ended by cancellation.
        abandoned: how many were given up.
        duration_s: the sum of the ended ones' wall times, in seconds, without the wait for a turn.
        peak_bytes: the highest peak of one of them; None where the meter cannot tell tasks apart.
        retained_bytes: what the ended ones left alive and the running ones hold; None as above.
        steps: the sum of their steps; None as above.
        meter: who counted.
        exact: False where the bytes are unknown, or others may have leaked in.
        note: why they are not exact, empty when they are.
    """

    name: str
    started: int
    running: int
    finished: int
    failed: int
    cancelled: int
    abandoned: int
    duration_s: float
    peak_bytes: int | None
    retained_bytes: int | None
    steps: int | None
    meter: str
    exact: bool
    note: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        peak = "unknown" if self.peak_bytes is None else format_size(self.peak_bytes)
        doubt = "" if self.exact else f" ({self.note})"
        return f"{self.name}: {self.started} tasks, peak {peak}, {self.duration_s:.3f} s, {self.meter}{doubt}"


def describe_failure(name: str, error: BaseException, clock: Callable[[], float] = time.time) -> TaskFailure:
    """Return a failure in words; the exception itself is not kept."""
    kind = type(error)
    label = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return TaskFailure(name, label, _message_of(error), clock())


def _message_of(error: BaseException) -> str:
    # A stranger's exception: its `__str__` may fail, and what it shows may be a whole document.
    try:
        text = str(error)
    except Exception:
        return "<a message that cannot be shown>"
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[:MAX_MESSAGE_LENGTH]}…"
