"""Figures of the tasks of one scope: statistics, usage by name, recorded failures.

Records hold numbers and text, never tasks, results, exceptions or frames: a record that is kept keeps nothing else
alive. Names may come from requests, so the number of accounts is bounded.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from memtools._records import as_dict, record
from memtools.ledger import Meter, Owner
from memtools.ledger._ledger import usage_tuple
from memtools.ledger._owner import UsageTuple
from memtools.units import format_size

MAX_MESSAGE_LENGTH: Final = 500
MAX_NAMES: Final = 256  # as many as the ledger's own accounts have
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"

_NOT_PER_TASK: Final = "this meter cannot tell tasks apart: counts and times only"


@record
class TaskFailure:
    """One task that failed, as text.

    Attributes:
        name: the task's name, or that of its coroutine where the task was given none.
        kind: the name of the exception's type, with its module unless it is a built-in.
        message: the exception's text, truncated to 500 characters.
        at: when the scope noticed it, in seconds since the epoch.
    """

    name: str
    kind: str
    message: str
    at: float

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}: {self.message}"


@record
class TaskScopeStatistics:
    """How many tasks of one scope run, wait and have ended, at one moment.

    Attributes:
        name: the scope's name.
        state: `"not entered"`, `"open"`, `"shutting down"` or `"finished"`.
        max_running: how many tasks may run at once, or None.
        running: tasks that have started and have not ended.
        waiting: tasks that have not started.
        finished: tasks that returned.
        failed: tasks that raised.
        cancelled: tasks that ended by cancellation.
        abandoned: tasks that were still running `grace` seconds after their cancellation.
    """

    name: str
    state: str
    max_running: int | None
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
    """The memory that the tasks of one name used together, at one moment.

    Attributes:
        name: the tasks' name, or that of their coroutines where the tasks were given none.
        started: how many were created.
        running: how many of them have not ended, the waiting ones included.
        finished: how many returned.
        failed: how many raised.
        cancelled: how many ended by cancellation.
        abandoned: how many were still running `grace` seconds after their cancellation.
        duration_s: the sum of the wall times of ended tasks, in seconds, without their wait for the start.
        peak_bytes: the highest peak of a task; None where the meter cannot tell tasks apart.
        retained_bytes: the bytes that ended tasks left live and running tasks hold; None as above.
        steps: the sum of their steps; None as above.
        meter: the name of the meter.
        exact: False where the bytes are unknown, or allocations of other code may be in them.
        note: why the figures are not exact, empty when they are.
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
        inexact = "" if self.exact else f" ({self.note})"
        return f"{self.name}: {self.started} tasks, peak {peak}, {self.duration_s:.3f} s, {self.meter}{inexact}"


def describe_failure(name: str, error: BaseException, clock: Callable[[], float] = time.time) -> TaskFailure:
    """Return the record of a failure; the exception itself is not kept.

    Args:
        name: the task's name.
        error: its exception.
        clock: returns the time, in seconds since the epoch.
    """
    kind = type(error)
    label = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return TaskFailure(name, label, _error_text(error), clock())


def _error_text(error: BaseException) -> str:
    # The `__str__` of the program's exception may fail, and its text may be a whole document.
    try:
        text = str(error)
    except Exception:
        return "<the message cannot be shown>"
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[:MAX_MESSAGE_LENGTH]}…"


class TaskAccount:
    """The sums of the tasks of one name.

    Every meter gives counts and wall times; only meters that track tasks give bytes and steps, since the others have no
    figure of a single task.
    """

    __slots__ = (
        "abandoned", "cancelled", "duration_s", "failed", "finished", "name", "note", "peak_bytes", "retained_bytes",
        "running", "started", "steps",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.running = 0
        self.finished = self.failed = self.cancelled = self.abandoned = 0
        self.duration_s = 0.0
        self.peak_bytes = self.retained_bytes = self.steps = 0
        self.note = ""

    def add_ended(self, owner: Owner, error: BaseException | None) -> None:  # noqa: ARG002  # the signature of `on_end`
        """Add the final usage of a task's owner. Called when the task ends, so it must not raise."""
        if owner.final_usage is not None:
            self._add(owner.final_usage)

    def to_usage(self, meter: Meter, open_owners: Iterable[Owner]) -> TaskUsage:
        """Return the sums, including the usage of the owners that are still open."""
        total = self.copy()
        for owner in open_owners:
            total._add(usage_tuple(owner))

        is_per_task = meter.tracks_owners
        note = total.note if is_per_task else _NOT_PER_TASK
        return TaskUsage(
            name=self.name,
            started=self.started,
            running=self.running,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            abandoned=self.abandoned,
            duration_s=self.duration_s,
            peak_bytes=total.peak_bytes if is_per_task else None,
            retained_bytes=total.retained_bytes if is_per_task else None,
            steps=total.steps if is_per_task else None,
            meter=meter.name,
            exact=not note,
            note=note,
        )

    def copy(self) -> "TaskAccount":
        """Return an account with the same sums."""
        duplicate = TaskAccount(self.name)
        for field in self.__slots__:
            setattr(duplicate, field, getattr(self, field))
        return duplicate

    def _add(self, figures: UsageTuple) -> None:
        if figures.peak_bytes > self.peak_bytes:
            self.peak_bytes = figures.peak_bytes
        self.retained_bytes += figures.retained_bytes
        self.steps += figures.steps
        if figures.note and not self.note:
            self.note = figures.note


class TaskAccounts:
    """The accounts of one scope.

    Attributes:
        by_name: the accounts, in order of arrival; a lookup here is cheaper than `open`.
    """

    __slots__ = ("by_name",)

    def __init__(self) -> None:
        self.by_name: dict[str, TaskAccount] = {}

    def open(self, name: str) -> TaskAccount:
        """Return the account for a name, truncated; `<other>` for new names once there are 256."""
        name = name[:MAX_NAME_LENGTH]
        if name not in self.by_name and len(self.by_name) >= MAX_NAMES:
            name = OTHER
        account = self.by_name.get(name)
        if account is None:
            account = self.by_name[name] = TaskAccount(name)
        return account

    def total(self, field: str) -> int:
        """Return the sum of one count over all names."""
        return sum(getattr(account, field) for account in self.by_name.values())
