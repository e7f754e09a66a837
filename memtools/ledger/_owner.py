"""Owners, their accounts and budgets, and the protocols of what counts and tracks them.

An owner is an open scope, a decorated call or a task. Owners, accounts and thread slots keep their fields in C where
the extension was built, and in Python otherwise; both promise the same and are never mixed.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from math import inf
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, cast

from memtools._records import as_dict, record
from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, emit
from memtools.ledger._counters import Counter
from memtools.ledger._threads import OtherThreadsTime, ran_since
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.ledger import _native as native_types

# Names may come from requests, so names below one account, the length of a name, and accounts in all are bounded; what
# comes later is added up under `<other>`.
MAX_NAMES: Final = 256
MAX_ACCOUNTS: Final = 4096
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"
OTHERS_RAN: Final = "other threads ran meanwhile"
FIRST_CHECKPOINT: Final = 16  # calls: what the first ones leave are caches and imports
MAX_CHECKPOINTS: Final = 4  # the last ones suffice to see whether it goes on

Kind: TypeAlias = Literal["scope", "call", "task"]
Measure: TypeAlias = Literal["peak", "retained", "rss"]
OnExceed: TypeAlias = Literal["raise", "warn", "deny"] | Callable[[BudgetExceeded], object]
Inexact: TypeAlias = Literal["warn", "raise"]

_log = logging.getLogger("memtools.budget")
_warned: set[tuple[str, int]] = set()  # name and limit of the budgets whose inexact figure was warned about


@cache
def find_native() -> tuple[ModuleType | None, str]:
    """Return the C extension, or None and why it cannot be loaded.

    Called once: an import that fails searches the disk each time, and a child forked meanwhile hangs on its lock.
    """
    try:
        # By its name: the error of an import statement would blame a circular import where nothing was built.
        return import_module("memtools.ledger._native"), ""
    except ImportError as error:
        return None, f"it was not built, or cannot be loaded ({error})"


def native_module() -> ModuleType | None:
    """Return the C extension where it was built for this Python and `MEMTOOLS_NATIVE=0` does not forbid it."""
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return None
    module, _ = find_native()
    return None if module is None or module.reason() else module


_native = native_module()


class UsageTuple(NamedTuple):
    """The fields of a `Usage`, in their order, in a tenth of the time that the record takes.

    A closed owner keeps it until the record is wanted. C code fills it, too (`EACH_USAGE_FIELD`).
    """

    name: str
    retained_bytes: int
    peak_bytes: int
    allocated_bytes: int | None
    freed_bytes: int | None
    resident_delta_bytes: int
    duration_s: float
    steps: int
    meter: str
    exact: bool
    note: str


@record
class Usage:
    """What an owner used between its opening and its end (or until now, while it is open).

    Attributes:
        name: the owner's name.
        retained_bytes: bytes that this owner and its children allocated and that are still alive.
        peak_bytes: the highest simultaneous live bytes of owner and children.
        allocated_bytes: all bytes ever allocated, or None where the meter cannot see it.
        freed_bytes: all bytes ever freed, or None where the meter cannot see it.
        resident_delta_bytes: change of the resident memory of the whole process, never the owner's own; with the native
            meter from readings that may be a millisecond old.
        duration_s: wall time in seconds.
        steps: for coroutines the number of steps, otherwise 0.
        meter: `"native"`, `"tracemalloc"` or `"rss"`.
        exact: False where other threads or tasks may have leaked in.
        note: why the figures are not exact; empty when they are.
    """

    name: str
    retained_bytes: int
    peak_bytes: int
    allocated_bytes: int | None
    freed_bytes: int | None
    resident_delta_bytes: int
    duration_s: float
    steps: int
    meter: str
    exact: bool
    note: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        doubt = "" if self.exact else f" ({self.note})"
        return (
            f"{self.name}: peak {format_size(self.peak_bytes)}, retained {format_size(self.retained_bytes)}, "
            f"{self.duration_s:.3f} s, {self.meter}{doubt}"
        )


if tuple(Usage.__annotations__) != UsageTuple._fields:
    raise AssertionError("the fields of Usage and UsageTuple differ")


@record
class Budget:
    """What an owner may use.

    Attributes:
        limit_bytes: the limit, in bytes.
        measure: the figure that is compared with the limit.
        on_exceed: `"raise"`, `"deny"` (large blocks that would exceed it are refused; what small ones add up to is
            raised for), `"warn"`, or a callable that is given the error; what it raises is logged.
        hard: whether the budget is checked while the owner is open, and not only at its end.
        inexact: what follows when a figure that is not exact exceeds the budget, where an exact one raises: `"warn"`
            (a warning in the log, once for each name and limit) or `"raise"`.
    """

    limit_bytes: int
    measure: Measure = "peak"
    on_exceed: OnExceed = "raise"
    hard: bool = True
    inexact: Inexact = "warn"

    @property
    def limit_bytes_in_flight(self) -> float:
        """The peak above which an open owner exceeds the budget, in bytes; infinite if only the end is checked."""
        return float(self.limit_bytes) if self.hard and self.measure == "peak" else inf

    @property
    def interrupts(self) -> bool:
        """Whether an open owner that exceeds the budget is stopped."""
        return self.limit_bytes_in_flight != inf and self.on_exceed in ("raise", "deny")

    @property
    def grace_bytes(self) -> int:
        """How far beyond the budget an owner may get while it is being stopped, in bytes."""
        return max(self.limit_bytes // 10, 1 << 20)  # as `limits_grace`

    def report_refusal(self, owner: "Owner", wanted_bytes: int) -> None:
        """Emit once that a block was refused to the owner; `wanted_bytes` is what it would have held with it."""
        if cast("native_types.Counter", owner.meter_state).report_once():
            emit(BudgetOverrun(owner.name, owner.kind, wanted_bytes, self.limit_bytes, self.measure, True))

    def report_exceeded(self, owner: "Owner", used_bytes: int, *, in_flight: bool) -> BudgetExceeded | None:
        """Emit once that the owner exceeds its budget; return the error if it is to be raised."""
        doubt = self.doubt_about(owner)
        owner.limit_bytes_in_flight = inf
        owner.exceeded_reported = True
        emit(BudgetOverrun(owner.name, owner.kind, used_bytes, self.limit_bytes, self.measure, in_flight, not doubt))
        error = BudgetExceeded(owner.name, used_bytes, self.limit_bytes, self.measure)
        if self.on_exceed in ("raise", "deny"):
            if not doubt or self.inexact == "raise":
                return error
            self._warn_of_inexact_figure(owner, error, doubt)
            return None

        if isinstance(self.on_exceed, str):  # "warn"
            _log.warning("Memory budget exceeded: %s%s", error, f" (not exact: {doubt})" if doubt else "")
            return None
        try:
            self.on_exceed(error)
        except Exception:
            _log.exception("on_exceed of %s failed", owner.name)
        return None

    def doubt_about(self, owner: "Owner") -> str:
        """Return why the owner's figure may be higher than what the owner used up to now; empty if it cannot be.

        A figure that may lack something, as the work of a thread without the owner's context, exceeds the budget for
        certain.
        """
        if self.measure == "rss":
            return ""  # the process's growth is what was asked for
        others = owner.other_threads_at_open
        return owner.meter.overcount_reason(owner) or (OTHERS_RAN if others is not None and ran_since(others) else "")

    def _warn_of_inexact_figure(self, owner: "Owner", error: BudgetExceeded, doubt: str) -> None:
        # Names may come from requests. What is beyond the bound is not warned about: the event tells it.
        key = owner.name, self.limit_bytes
        if key in _warned or len(_warned) >= MAX_NAMES:
            return
        _warned.add(key)
        if owner.meter.name == "native":
            cure = "a decorated function, a task_scope or memtools.track_tasks() follows the steps of a task"
        else:
            cure = "meter='native' counts exactly (`python -m memtools info` says why it is missing)"
        _log.warning(
            "Memory budget exceeded, by a figure that is not exact: %s; nothing is raised (%s). %s; with "
            "inexact='raise' the budget raises all the same",
            error, doubt, cure,
        )  # fmt: skip


class BudgetStop(BaseException):
    """What is raised in code that has caught `BudgetExceeded` and uses up its grace, too.

    It derives from `BaseException` alone, so that `except Exception` does not catch it. Where the owner ends,
    `BudgetExceeded` is raised in its place.

    Attributes:
        exceeded: what is raised there.
    """

    def __init__(self, owner: "Owner", exceeded: BudgetExceeded) -> None:
        super().__init__(str(exceeded))
        self.exceeded = exceeded
        self._owner = weakref.ref(owner)

    def is_for(self, owner: "Owner") -> bool:
        """Return whether that owner is to be stopped."""
        return self._owner() is owner


class LiveBytes(Protocol):
    """The live bytes of the owners of one account, closed ones included, as far as a meter knows."""

    def live_bytes(self) -> int | None:
        """Return the bytes of the live blocks that they have allocated; None where that cannot be known."""
        ...


@record
class AccountStatistics:
    """What the owners of one name and place used together, at one moment; a tree.

    Attributes:
        name: the owners' name.
        kind: `"scope"`, `"call"` or `"task"`.
        started: how many were opened.
        active: how many of them are open.
        failed: how many ended with an exception.
        peak_bytes: the highest peak of one of them.
        mean_peak_bytes: the mean over the peaks of the ended ones.
        retained_bytes: the sum of what the ended ones left alive and what the open ones hold.
        duration_s: the sum of their wall times, in seconds.
        steps: the sum of their steps.
        exact: False when one of them was not exact.
        note: why, for the first that was not.
        meter: the meter of the last one.
        children: the accounts below, in order of arrival.
        live_bytes: what all of them, ended and open, and those below have allocated that is alive now; None where the
            meter does not know.
        live_after_end_bytes: the part of it that was left by those that have ended.
        live_at_checkpoints: pairs of a number of calls and the bytes that so many had left when the last of them
            ended: the last four that were a power of two.
    """

    name: str
    kind: str
    started: int
    active: int
    failed: int
    peak_bytes: int
    mean_peak_bytes: int
    retained_bytes: int
    duration_s: float
    steps: int
    exact: bool
    note: str
    meter: str
    children: "tuple[AccountStatistics, ...]"
    live_bytes: int | None = None
    live_after_end_bytes: int | None = None
    live_at_checkpoints: tuple[tuple[int, int], ...] = ()


if TYPE_CHECKING or _native is None:

    class AccountFields:
        """The fields of an account, where they are not kept in C."""

        __slots__ = (
            "_count", "active", "checkpoints", "children", "duration_s", "ended", "excludes_children", "failed", "kind",
            "meter", "name", "note", "parent", "peak", "peak_sum", "retained", "started", "steps", "totals",
        )  # fmt: skip
else:
    AccountFields = _native.AccountFields


class Account(AccountFields):
    """The running sums behind an `AccountStatistics`: one per kind and name below its parent's account.

    A function that calls itself has one account, not one per depth. The caller holds the ledger's lock.

    Attributes:
        totals: the live bytes of its owners, set by a meter that knows them.
        excludes_children: whether its owners leave out those below, and so do not hold their bytes either.
        checkpoints: as `AccountStatistics.live_at_checkpoints`.
    """

    __slots__ = ("_names",)

    def __init__(self, name: str, kind: str, parent: "Account | None" = None) -> None:
        self.name: str = name
        self.kind: str = kind
        self.parent: Account | None = parent
        self.children: dict[tuple[str, str], Account] = {}
        self.started: int = 0
        self.active: int = 0
        self.ended: int = 0
        self.failed: int = 0
        self.steps: int = 0
        self.peak: int = 0
        self.peak_sum: int = 0
        self.retained: int = 0
        self.duration_s: float = 0.0
        self.note: str = ""
        self.meter: str = ""
        self.totals: LiveBytes | None = None
        self.excludes_children: bool = False
        self.checkpoints: tuple[tuple[int, int], ...] = ()
        # Both are shared by the whole tree: how many accounts there are, and their kinds and names.
        self._count: list[int] = parent._count if parent is not None else [0]
        self._names: set[tuple[str, str]] = parent._names if parent is not None else {(kind, name)}

    def child(self, kind: str, name: str) -> "Account":
        """Return the account for owners of that kind and name whose parent has this account."""
        known = self._find(kind, name)
        if known is not None:
            return known
        if len(self.children) >= MAX_NAMES or self._count[0] >= MAX_ACCOUNTS:
            name = OTHER
            known = self._find(kind, name)
            if known is not None:
                return known
        self._count[0] += 1
        self._names.add((kind, name))
        made = self.children[kind, name] = Account(name, kind, self)
        return made

    def _find(self, kind: str, name: str) -> "Account | None":
        if (kind, name) not in self._names:
            return None  # no need to ask thousands of ancestors
        ancestor: Account | None = self
        while ancestor is not None:
            if ancestor.name == name and ancestor.kind == kind:
                return ancestor
            ancestor = ancestor.parent
        return self.children.get((kind, name))

    @property
    def live_bytes(self) -> int | None:
        """What its owners, ended and open, and those below hold now; None where no meter knows."""
        own = self._own_bytes
        if self.excludes_children:
            return own
        below = (account._own_bytes for account in self._descendants())
        known = [own_bytes for own_bytes in (own, *below) if own_bytes is not None]
        return sum(known) if known else None

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether it is time to remember what its ended owners have left."""
        return self.ended >= FIRST_CHECKPOINT and not self.ended & (self.ended - 1) and self.totals is not None

    def checkpoint(self, open_bytes: Mapping[int, int]) -> None:
        """Remember what its ended owners have left up to now; the argument is as for `statistics`."""
        left = self._live_after_end_bytes(open_bytes)
        if left is not None and (self.ended, left) not in self.checkpoints[-1:]:
            self.checkpoints = (*self.checkpoints, (self.ended, left))[-MAX_CHECKPOINTS:]

    def _live_after_end_bytes(self, open_bytes: Mapping[int, int]) -> int | None:
        live = self.live_bytes
        return None if live is None else live - open_bytes.get(id(self), 0)

    @property
    def _own_bytes(self) -> int | None:
        return self.totals.live_bytes() if self.totals is not None else None

    def _descendants(self) -> "Iterator[Account]":
        waiting = list(self.children.values())
        while waiting:
            account = waiting.pop()
            yield account
            waiting.extend(account.children.values())

    @property
    def is_used(self) -> bool:
        """Whether an owner is counted here or below; not where all have been renamed."""
        return self.started > 0 or any(child.is_used for child in self.children.values())

    def child_statistics(
        self, open_figures: "dict[int, list[tuple[float, float, str]]]", open_bytes: Mapping[int, int]
    ) -> "tuple[AccountStatistics, ...]":
        """Return the sums of the accounts below; arguments as for `statistics`."""
        return tuple(child.statistics(open_figures, open_bytes) for child in self.children.values() if child.is_used)

    def statistics(
        self, open_figures: "dict[int, list[tuple[float, float, str]]]", open_bytes: Mapping[int, int]
    ) -> AccountStatistics:
        """Return the sums as a tree of records.

        Args:
            open_figures: live bytes, peak bytes and note of the open owners, by the id of their account.
            open_bytes: what open owners hold of an account's live bytes, by the id of the account.
        """
        still_open = open_figures.get(id(self), ())
        notes = [self.note, *(note for _, _, note in still_open)]
        note = next(filter(None, notes), "")
        return AccountStatistics(
            name=self.name,
            kind=self.kind,
            started=self.started,
            active=self.active,
            failed=self.failed,
            peak_bytes=int(max([self.peak, *(peak for _, peak, _ in still_open)])),
            mean_peak_bytes=int(self.peak_sum / self.ended) if self.ended else 0,
            retained_bytes=int(self.retained + sum(live for live, _, _ in still_open)),
            duration_s=self.duration_s,
            steps=self.steps,
            exact=not note,
            note=note,
            meter=self.meter,
            children=self.child_statistics(open_figures, open_bytes),
            live_bytes=self.live_bytes,
            live_after_end_bytes=self._live_after_end_bytes(open_bytes),
            live_at_checkpoints=self.checkpoints,
        )


class Meter(Protocol):
    """One way of counting bytes. All calls are safe from any thread.

    A meter that does not track owners is never asked to `switch`, and its owners are never the current one.
    """

    @property
    def name(self) -> str:
        """How the meter is called in arguments, reports and `MEMTOOLS_METER`."""
        ...

    @property
    def tracks_owners(self) -> bool:
        """Whether the current owner must change with the steps of coroutines."""
        ...

    @property
    def follows_contexts(self) -> bool:
        """Whether it charges the active owner of whichever context runs, without being told of a change."""
        ...

    @property
    def is_per_thread(self) -> bool:
        """Whether an owner's figures contain nothing of what other threads do meanwhile."""
        ...

    def acquire(self) -> None:
        """Keep the meter running until `release`; calls are counted."""
        ...

    def release(self) -> None:
        """Undo one `acquire`; the last release ends what the first `acquire` started."""
        ...

    def start(self, owner: "Owner", slot: "ThreadSlot", parent: "Owner | None", is_task: bool, /) -> None:
        """Begin to measure a new owner; it becomes the current one of `slot` unless it is untracked.

        Its figures count into those of `parent`; `is_task` says that it runs beside its parent and not inside it.
        """
        ...

    def stop(self, owner: "Owner", slot: "ThreadSlot", next_owner: "Owner | None", /) -> None:
        """Write the owner's last figures; if it is the current one, make `next_owner` the current one."""
        ...

    def switch(self, slot: "ThreadSlot", owner: "Owner | None", /) -> None:
        """Charge `owner`, or no owner, for what this thread allocates from now on."""
        ...

    def mark_untracked(self, owner: "Owner", why: str, /) -> None:
        """Measure the owner process-wide from now on, because its steps are not tracked."""
        ...

    def read(self, owner: "Owner", /) -> tuple[int, int]:
        """Return live and peak bytes of an open owner, up to this moment."""
        ...

    def charge_unowned(self, owner: "Owner", /) -> None:
        """Charge an open owner, too, with what its thread allocates in contexts that no owner is active in.

        For a block that is the whole of what a thread does, whatever contexts it makes: a test.
        """
        ...

    def overcount_reason(self, owner: "Owner", /) -> str:
        """Return why the figures may hold what others use; empty where they are exact or can only lack something."""
        ...

    def live_bytes(self, owner: "Owner", /) -> int | None:
        """Return what an owner, ended or not, still holds, or None where that cannot be known."""
        ...

    def attach_account(self, owner: "Owner", /) -> None:
        """Count what the owner holds, now and after its end, in its account and in no other, where that is known."""
        ...

    def after_fork(self, slot: "ThreadSlot", /) -> None:
        """Renew locks in the child of a fork, where only the thread of `slot` lives on."""
        ...

    @property
    def unattributed_bytes(self) -> int:
        """Bytes added without a current owner since the meter was first acquired."""
        ...


class Tracker(Protocol):
    """What an owner and a thread know of the coroutine whose steps are tracked."""

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        ...

    @property
    def task(self) -> object | None:
        """The asyncio task that it runs in, or None."""
        ...


class Suspended(Protocol):
    """What an owner knows of the generator that suspends and resumes it."""

    def release(self, owner: "Owner") -> "tuple[Owner | None, Owner | None]":
        """Return which owner is to be current, and which one active, after `owner`, which is about to end."""
        ...


class PythonOwnerFields(Counter):
    """The fields of an owner, where they are not kept in C; every field has a default, unless it is an argument."""

    __slots__ = (
        "__weakref__", "account", "allocated", "baseline", "budget", "charged_to", "ended", "exceeded_reported",
        "final_usage", "freed_before", "home_context", "include_children", "is_counted", "is_recursive", "is_stacked",
        "is_untracked", "kind", "largest_children", "limit_bytes_in_flight", "look_up_name", "meter", "meter_state",
        "name", "nearest_budgeted", "note", "opened_at", "other_threads_at_open", "parent", "previous",
        "resident_at_open", "session", "steps_at_open", "suspension", "tracker", "unowned_before",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: Kind,
        meter: Meter,
        parent: "Owner | None",
        account: Account,
        include_children: bool = True,
        budget: Budget | None = None,
        is_untracked: bool = False,
    ) -> None:
        super().__init__()
        self.name: str = name
        self.kind: Kind = kind
        self.meter: Meter = meter
        self.parent: Owner | None = parent
        self.account: Account = account
        self.include_children: bool = include_children
        self.is_untracked: bool = is_untracked
        self.charged_to: Owner | None = None
        self.previous: Owner | None = None
        self.note: str = ""
        self.final_usage: UsageTuple | None = None
        self.budget: Budget | None = budget
        self.limit_bytes_in_flight: float = inf
        self.nearest_budgeted: Owner | None = None
        self.exceeded_reported: bool = False
        self.ended: bool = False
        self.home_context: object = None
        self.look_up_name: Callable[[], tuple[str | None, bool]] | None = None
        self.suspension: Suspended | None = None
        self.is_recursive: bool = False
        self.is_stacked: bool = False
        self.is_counted: bool = True
        self.largest_children: tuple[tuple[str, int], ...] = ()
        # Weak: a pending task that has no other reference must not be kept alive by the list of open owners.
        self.tracker: weakref.ref[Tracker] | None = None
        self.steps_at_open: int = 0
        # What the meter and the ledger read at the opening, to take the difference at the end.
        self.baseline: float = 0.0
        self.session: float = 0.0
        self.freed_before: float = 0.0
        self.unowned_before: float = 0.0
        self.allocated: int | None = None
        self.other_threads_at_open: OtherThreadsTime | None = None
        self.meter_state: object = None
        self.opened_at: float = 0.0
        self.resident_at_open: int = 0


if TYPE_CHECKING or _native is None:  # noqa: SIM108  # type checkers take a conditional expression for a variable
    OwnerFields = PythonOwnerFields
else:
    OwnerFields = _native.OwnerFields


class Owner(OwnerFields):
    """What bytes are charged to, from its opening to its end: an open scope, a decorated call, a task.

    Attributes:
        name: what it is called in reports.
        kind: `"scope"`, `"call"` or `"task"`.
        meter: the meter that counts for it.
        parent: the owner that was active where it was opened.
        include_children: whether owners below count into its figures.
        charged_to: the owner that is charged while this one is active: itself, or the nearest ancestor whose meter
            tracks owners.
        previous: the owner of the tracemalloc meter that was current on its thread before it.
        look_up_name: finds its name, where that is not known when it is opened; see `name_late`.
        home_context: the only context in which it is active, where it is not inherited by copies of that; else None.
        is_untracked: True when its steps are not tracked, so that its figures are the whole process's.
        note: why its figures are not exact, empty when they are.
        budget: what it may use, if that is bounded.
        nearest_budgeted: itself or the nearest ancestor whose budget is checked while it is open.
        limit_bytes_in_flight: the peak in bytes above which it exceeds the budget while open; infinite once reported.
        exceeded_reported: whether that was reported already.
        ended: whether it has ended.
        is_recursive: whether an open ancestor has the same account, which already counts this owner's bytes.
        is_stacked: whether the call that it stands for is to open a further owner of the same name (two decorators).
        is_counted: whether its account counts it; not where it is that further owner.
        largest_children: the three children with the highest peaks that have ended, as (name, peak in bytes).
        allocated: bytes ever charged to it and its children, as of the meter's last reading; None where the meter
            cannot see them.
        final_usage: the fields of its `Usage`, once it has ended.
    """

    __slots__ = ()

    @property
    def is_active(self) -> bool:
        """Whether it is still open."""
        return not self.ended

    @property
    def usage(self) -> Usage | None:
        """What it used in the end; None while it is open."""
        return None if self.final_usage is None else Usage(*self.final_usage)

    @property
    def steps(self) -> int:
        """Steps that its coroutine has taken since it was opened; 0 where they are not tracked."""
        tracker = self.tracker() if self.tracker is not None else None
        return tracker.steps - self.steps_at_open if tracker is not None else 0

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the accounts from the outermost down to this one."""
        names: list[str] = []
        account = self.account
        while account.parent is not None:
            names.append(account.name)
            account = account.parent
        return tuple(reversed(names))

    @property
    def live_bytes(self) -> int:
        """Bytes that it and its children hold now.

        After its end: those of them that still live with the native meter, what it held at its end with the others.
        """
        if self.final_usage is None:
            return self.meter.read(self)[0]
        left = self.meter.live_bytes(self)
        return self.final_usage.retained_bytes if left is None else left

    @property
    def peak_bytes(self) -> int:
        """Its highest live bytes so far."""
        return self.final_usage.peak_bytes if self.final_usage is not None else self.meter.read(self)[1]

    @property
    def refusals(self) -> tuple[int, int]:
        """How many blocks its budget refused, and the highest live bytes that one of them would have led to."""
        refusals: tuple[int, int] = getattr(self.meter_state, "refusals", (0, 0))  # only the native meter refuses
        return refusals

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return f"<{self.kind} {self.name!r} {state} meter={self.meter.name}>"


class PythonThreadSlot:
    """What one thread is doing; in Python, where it is not in C.

    Attributes:
        owner: the current owner, which is charged for what this thread allocates, or None.
        tracker: the tracked coroutine whose step this thread is in, or None.
        untracked_candidates: open owners that become untracked if the event loop runs before they end.
        scheduled_on: the event loop that was asked to mark them then.
    """

    __slots__ = ("__weakref__", "owner", "scheduled_on", "tracker", "untracked_candidates")

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.tracker: Tracker | None = None
        self.untracked_candidates: list[Owner] = []
        self.scheduled_on: weakref.ref[Any] | None = None  # Any: of asyncio, uvloop or trio


if TYPE_CHECKING or _native is None:  # noqa: SIM108  # type checkers take a conditional expression for a variable
    ThreadSlot = PythonThreadSlot
else:
    ThreadSlot = _native.ThreadSlot


# Owners in which `BudgetStop` was raised, or an exception dropped: they end with `BudgetExceeded`, however they end.
unheeded_stops: weakref.WeakSet[Owner] = weakref.WeakSet()


def live_bytes_of_open_owners(owners: Iterable[Owner], *, only: Account | None = None) -> dict[int, int]:
    """Return the live bytes of open owners, by the id of each account in whose figures they are.

    Owners whose meter does not know are left out; with `only`, all that are not in the figures of that account, so that
    they need not be read.
    """
    held: dict[int, int] = {}
    for owner in owners:
        if owner.is_recursive:
            continue
        # Up to the account of the nearest open ancestor, whose own figure has these bytes already. Accounts in between
        # are of owners that have ended before this one: they have not leaked the bytes as long as it is open.
        above = _nearest_open_parent(owner)
        accounts: list[Account] = []
        account = owner.account
        while account.parent is not None and (above is None or account is not above.account):
            accounts.append(account)
            account = account.parent
        live = owner.meter.live_bytes(owner) if only is None or only in accounts else None
        if live is None:
            continue
        for account in accounts:
            held[id(account)] = held.get(id(account), 0) + live
    return held


def _nearest_open_parent(owner: Owner) -> Owner | None:
    above = owner.parent
    while above is not None and (above.ended or above.is_untracked or above.meter is not owner.meter):
        above = above.parent
    return above
