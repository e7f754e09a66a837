"""What a task scope tells: its statistics, the usage of its tasks by name, the failures it recorded.

Records hold numbers and text, never tasks, results, exceptions or frames: whoever keeps them keeps nothing else alive.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from memtools._records import as_dict, record
from memtools.errors import MemtoolsError
from memtools.ledger import Meter, Owner
from memtools.ledger._ledger import usage_tuple
from memtools.ledger._owner import UsageTuple
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


# Add up what the tasks of one scope did, by name, in bounded space.
#
# Covers: counts and wall times with every meter; bytes and steps with meters that follow tasks. Leaves to others: the
# owners themselves (`memtools.ledger`).
#
# With a meter that does not follow tasks there is no figure in bytes that would be a task's own, and none is shown.

# As the ledger's own accounts. Names may come from requests.
MAX_NAMES: Final = 256
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"

_NOT_PER_TASK: Final = "this meter cannot tell tasks apart: counts and times only"


class TaskAccount:
    """The running sums for one name."""

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

    def add_ended(self, owner: Owner, error: BaseException | None) -> None:  # noqa: ARG002  # as the driver calls it
        """Add the final figures of a task's owner. Called at the end of the task, hence nothing may be raised."""
        if owner.final_usage is not None:
            self._add(owner.final_usage)

    def to_usage(self, meter: Meter, open_owners: Iterable[Owner]) -> TaskUsage:
        """Return the sums, with the owners that are still open counted in."""
        total = self.copy()
        for owner in open_owners:
            total._add(usage_tuple(owner))

        follows = meter.tracks_owners
        note = total.note if follows else _NOT_PER_TASK
        return TaskUsage(
            name=self.name,
            started=self.started,
            running=self.running,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            abandoned=self.abandoned,
            duration_s=self.duration_s,
            peak_bytes=total.peak_bytes if follows else None,
            retained_bytes=total.retained_bytes if follows else None,
            steps=total.steps if follows else None,
            meter=meter.name,
            exact=not note,
            note=note,
        )

    def copy(self) -> "TaskAccount":
        """Return an account with the same sums."""
        twin = TaskAccount(self.name)
        for field in self.__slots__:
            setattr(twin, field, getattr(self, field))
        return twin

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
        by_name: the accounts, in order of arrival; look here first, it costs a dict lookup.
    """

    __slots__ = ("by_name",)

    def __init__(self) -> None:
        self.by_name: dict[str, TaskAccount] = {}

    def open(self, name: str) -> TaskAccount:
        """Return the account for a name that may be new, too long, or one too many."""
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
