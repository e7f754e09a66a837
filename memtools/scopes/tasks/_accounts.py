"""Add up what the tasks of one scope did, by name, in bounded space.

Covers: counts and wall times with every meter; bytes and steps with meters that follow tasks. Leaves to others: the
owners themselves (`memtools.ledger`).

With a meter that does not follow tasks there is no figure in bytes that would be a task's own, and none is shown.
"""

from collections.abc import Iterable
from typing import Final

from memtools.ledger import Figures, Meter, Owner, figures_of
from memtools.scopes.tasks._records import TaskUsage

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
        if owner.final is not None:
            self._add(owner.final)

    def to_usage(self, meter: Meter, open_owners: Iterable[Owner]) -> TaskUsage:
        """Return the sums, with the owners that are still open counted in."""
        total = self.copy()
        for owner in open_owners:
            total._add(figures_of(owner))

        follows = meter.follows
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

    def _add(self, figures: Figures) -> None:
        _, retained, peak, _, _, _, _, steps, _, _, note = figures
        if peak > self.peak_bytes:
            self.peak_bytes = peak
        self.retained_bytes += retained
        self.steps += steps
        if note and not self.note:
            self.note = note


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
