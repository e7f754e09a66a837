"""Who is charged: an open scope, a decorated call, a task.

Covers: what an owner is and knows. Leaves to others: where its fields are kept (`_owner_fields`, `native/seats.c`), its
arithmetic (`_tally`), opening and ending it (`_book`).
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, cast

from memtools._records import as_dict, record
from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, emit
from memtools.ledger._counters import Tally
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.ledger import _native
    from memtools.ledger._context import Suspension
    from memtools.ledger._coroutines import TrackedCoroutine
    from memtools.ledger._threads import Neighbours
    from memtools.ledger.meters._choose import Meter


# Whether the parts that each step goes through are those in C, or those in Python.
#
# Covers: the one choice, made at import: both promise the same, and are never mixed. Leaves to others: the parts
# (`native/seats.c`, `native/turns.c` and `native/driver.c`; `_owner_fields`, `_current` and `_steps` in Python).


def native_seats() -> ModuleType | None:
    """Return the module in C where it was built for this Python and `MEMTOOLS_NATIVE=0` does not forbid it."""
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return None
    try:
        # Not at the top: it is missing where there was no compiler.
        from memtools.ledger import _native
    except ImportError:
        return None
    return None if _native.reason() else _native


# Remember what ended owners used, by name and place, in bounded space.
#
# Covers: one account per (kind, name) below its parent's account, with sums and maxima; what of theirs is still alive,
# where the meter knows it, now and after so many calls. Leaves to others: open owners (`_book`, `_open_holdings`), how it
# is shown (`memtools.reports`).
#
# Names may come from requests, so there is a bound on names below one account, on the length of a name, and on accounts
# in all; what comes later is added up under `<other>`. A function that calls itself has one account, not one per depth.

MAX_NAMES: Final = 256
MAX_ACCOUNTS: Final = 4096
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"
FIRST_MARK: Final = 16  # calls: what the first ones leave are caches and imports
MARKS: Final = 4  # the last ones suffice to see whether it goes on


class Holdings(Protocol):
    """What the owners of one account hold, those that have ended included, as far as a meter knows."""

    def live_bytes(self) -> int | None:
        """Return the bytes of the live blocks that they have made; None where that cannot be known."""
        ...


@record
class AccountStatistics:
    """What the owners of one name and place used together, at one moment; a tree.

    Attributes:
        name: the owners' name.
        kind: `"scope"`, `"call"` or `"task"`.
        entered: how many were opened.
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
        children: accounts below, in order of arrival.
        live_bytes: what all of them, ended and open, and those below have made that is alive now; None where the meter
            does not know.
        live_after_end_bytes: the part of it that is left of those that have ended.
        live_at_checkpoints: pairs of a number of calls and the bytes that so many had left when the last of them ended: the last
            four that were a power of two.
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


_seats: Any = native_seats()  # Any: a module that may not have been built
if TYPE_CHECKING or _seats is None:

    class AccountFields:
        """The fields of an account, where they are not kept in C (`native/seats.c`)."""

        __slots__ = (
            "_count", "active", "children", "duration_s", "ended", "entered", "failed", "holdings", "kind", "marks",
            "meter", "name", "note", "parent", "peak", "peak_sum", "retained", "stands_alone", "steps",
        )  # fmt: skip
else:
    AccountFields = _seats.AccountFields


class Account(AccountFields):
    """The running sums behind an `Entry`. The caller holds the ledger's lock."""

    __slots__ = ()

    def __init__(self, name: str, kind: str, parent: "Account | None" = None) -> None:
        self.name: str = name
        self.kind: str = kind
        self.parent: Account | None = parent
        self.children: dict[tuple[str, str], Account] = {}
        self.entered: int = 0
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
        # Set by a meter that knows. Owners that leave out those below do not hold their bytes either.
        self.holdings: Holdings | None = None
        self.stands_alone: bool = False
        self.marks: tuple[tuple[int, int], ...] = ()
        self._count: list[int] = parent._count if parent is not None else [0]  # shared by the whole tree

    def below(self, kind: str, name: str) -> "Account":
        """Return the account for owners of that kind and name whose parent has this account."""
        known = self._known(kind, name)
        if known is not None:
            return known
        if len(self.children) >= MAX_NAMES or self._count[0] >= MAX_ACCOUNTS:
            name = OTHER
            known = self._known(kind, name)
            if known is not None:
                return known
        self._count[0] += 1
        made = self.children[kind, name] = Account(name, kind, self)
        return made

    def _known(self, kind: str, name: str) -> "Account | None":
        above: Account | None = self
        while above is not None:
            if above.name == name and above.kind == kind:
                return above
            above = above.parent
        return self.children.get((kind, name))

    @property
    def live_bytes(self) -> int | None:
        """What its owners, ended and open, and those below hold now; None where no meter knows."""
        own = self._own_bytes
        if self.stands_alone:
            return own
        below = (account._own_bytes for account in self._all_below())
        known = [own_bytes for own_bytes in (own, *below) if own_bytes is not None]
        return sum(known) if known else None

    @property
    def is_at_a_mark(self) -> bool:
        """Whether it is time to remember what its owners have left."""
        return self.ended >= FIRST_MARK and not self.ended & (self.ended - 1) and self.holdings is not None

    def mark(self, held_by_open: Mapping[int, int]) -> None:
        """Remember what its ended owners have left up to now."""
        left = self._left_bytes(held_by_open)
        if left is not None and (self.ended, left) not in self.marks[-1:]:
            self.marks = (*self.marks, (self.ended, left))[-MARKS:]

    def _left_bytes(self, held_by_open: Mapping[int, int]) -> int | None:
        live = self.live_bytes
        return None if live is None else live - held_by_open.get(id(self), 0)

    @property
    def _own_bytes(self) -> int | None:
        return self.holdings.live_bytes() if self.holdings is not None else None

    def _all_below(self) -> "Iterator[Account]":
        waiting = list(self.children.values())
        while waiting:
            account = waiting.pop()
            yield account
            waiting.extend(account.children.values())

    @property
    def is_used(self) -> bool:
        """Whether anybody is counted here or below; not where all have been renamed."""
        return self.entered > 0 or any(child.is_used for child in self.children.values())

    def entries_below(
        self, open_figures: "dict[int, list[tuple[float, float, str]]]", held_by_open: Mapping[int, int]
    ) -> "tuple[AccountStatistics, ...]":
        """Return the sums of the accounts below; arguments as for `entry`."""
        return tuple(child.entry(open_figures, held_by_open) for child in self.children.values() if child.is_used)

    def entry(
        self, open_figures: "dict[int, list[tuple[float, float, str]]]", held_by_open: Mapping[int, int]
    ) -> AccountStatistics:
        """Return the sums as a tree of records.

        Args:
            open_figures: live bytes, peak bytes and note of the open owners, by the id of their account.
            held_by_open: what open owners hold of an account's live bytes, by its id.
        """
        still_open = open_figures.get(id(self), ())
        notes = [self.note, *(note for _, _, note in still_open)]
        note = next(filter(None, notes), "")
        return AccountStatistics(
            name=self.name,
            kind=self.kind,
            started=self.entered,
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
            children=self.entries_below(open_figures, held_by_open),
            live_bytes=self.live_bytes,
            live_after_end_bytes=self._left_bytes(held_by_open),
            live_at_checkpoints=self.marks,
        )


# What an owner may use, and what follows when it uses more.
#
# Covers: the limit, the figure that is held against it, the error, warning or callback. Leaves to others: when it is
# looked at (`_driver` after each step, `memtools.scopes` at the end).

Measure: TypeAlias = Literal["peak", "retained", "rss"]
OnExceed: TypeAlias = Literal["raise", "warn", "deny"] | Callable[[BudgetExceeded], object]

_log = logging.getLogger("memtools.budget")


@record
class Budget:
    """What an owner may use.

    Attributes:
        limit_bytes: the most that it may use.
        measure: which figure is held against it.
        on_exceed: `"raise"`, `"deny"` (large blocks that would exceed it are refused; what small ones add up to is
            raised for), `"warn"`, or a callable that is given the error; what it raises is logged.
        hard: whether it is looked at while the owner is open, and not only at its end.
    """

    limit_bytes: int
    measure: Measure = "peak"
    on_exceed: OnExceed = "raise"
    hard: bool = True

    @property
    def ceiling(self) -> float:
        """The peak at which an open owner is over it, in bytes."""
        return float(self.limit_bytes) if self.hard and self.measure == "peak" else inf

    @property
    def stops(self) -> bool:
        """Whether an open owner that is over it is stopped."""
        return self.ceiling != inf and self.on_exceed in ("raise", "deny")

    def note_refusal(self, owner: "Owner", wanted_bytes: int) -> None:
        """Tell that a block was refused to the owner, once; `wanted_bytes` is what it would have held with it."""
        if cast("_native.Tally", owner.watch).tell_once():
            emit(BudgetOverrun(owner.name, owner.kind, wanted_bytes, self.limit_bytes, self.measure, True))

    def note_overrun(self, owner: "Owner", used_bytes: int, *, in_flight: bool) -> BudgetExceeded | None:
        """Tell that the owner is over its budget, once; return the error if it is to be raised."""
        owner.ceiling = inf
        owner.overran = True
        emit(BudgetOverrun(owner.name, owner.kind, used_bytes, self.limit_bytes, self.measure, in_flight))
        error = BudgetExceeded(owner.name, used_bytes, self.limit_bytes, self.measure)
        if self.on_exceed in ("raise", "deny"):
            return error

        if isinstance(self.on_exceed, str):  # "warn"
            _log.warning("High memory increase: %s", error)
            return None
        try:
            self.on_exceed(error)
        except Exception:
            _log.exception("on_exceed of %s failed", owner.name)
        return None


# What an owner used: one frozen record.


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

Kind: TypeAlias = Literal["scope", "call", "task"]


# The fields of an owner, where they are not kept in C (`native/seats.c`).
#
# Leaves to others: what they mean (`_owner`).


class PureOwnerFields(Tally):
    """What an owner remembers; all that it begins with is nothing, unless it is given here."""

    __slots__ = (
        "__weakref__", "account", "adrift", "allocated", "base", "budget", "budgeted", "ceiling", "charged", "driver",
        "ended", "epoch", "final", "freed_before", "include_children", "is_counted", "is_layered", "kind", "largest",
        "meter", "name", "neighbours", "nested", "note", "opened_at", "outer", "overran", "parent", "resident",
        "steps_before", "turn", "watch",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: "Kind",
        meter: "Meter",
        parent: "Owner | None",
        account: "Account",
        include_children: bool = True,
        budget: "Budget | None" = None,
        adrift: bool = False,
    ) -> None:
        super().__init__()
        self.name: str = name
        self.kind: Kind = kind
        self.meter: Meter = meter
        self.parent: Owner | None = parent
        self.account: Account = account
        self.include_children: bool = include_children
        self.adrift: bool = adrift
        self.charged: Owner | None = None
        self.outer: Owner | None = None
        self.note: str = ""
        self.final: UsageTuple | None = None
        self.budget: Budget | None = budget
        self.ceiling: float = inf
        self.budgeted: Owner | None = None
        self.overran: bool = False
        self.ended: bool = False
        self.turn: Suspension | None = None
        self.nested: bool = False
        self.is_layered: bool = False
        self.is_counted: bool = True
        self.largest: tuple[tuple[str, int], ...] = ()
        # Weak: a pending task that nobody wants any more must not live on by our list of open owners.
        self.driver: weakref.ref[TrackedCoroutine[Any]] | None = None  # Any: whatever its coroutine returns
        self.steps_before: int = 0
        # What the meter and the book remember from the opening, to take the difference at the end.
        self.base: float = 0.0
        self.epoch: float = 0.0
        self.freed_before: float = 0.0
        self.allocated: int | None = None
        self.neighbours: Neighbours | None = None
        self.watch: object = None
        self.opened_at: float = 0.0
        self.resident: int = 0


if TYPE_CHECKING or _seats is None:
    OwnerFields = PureOwnerFields
else:
    OwnerFields = _seats.OwnerFields


class Owner(OwnerFields):
    """One who is charged, from its opening to its end.

    Attributes:
        name: what it is called in reports.
        kind: `"scope"`, `"call"` or `"task"`.
        meter: the meter that counts for it.
        parent: the owner that was active where it was opened.
        include_children: whether owners below count into its figures.
        charged: who is charged while this owner is active: itself, or the nearest one above with a meter that follows.
        outer: who had the turn on its thread before it.
        adrift: True when nobody follows its steps, so that its figures are the whole process's.
        note: why its figures are not exact, empty when they are.
        budget: what it may use, if that is bounded.
        budgeted: itself or the nearest one above whose budget is looked at while it is open.
        ceiling: the peak in bytes at which it is over its budget while open; infinite once that was told.
        overran: whether it was told already.
        ended: whether it is over.
        is_layered: whether the call that it stands for is still to go through a further owner of the same name.
        largest: the three children with the highest peaks that have ended, as (name, peak in bytes).
        is_counted: whether its account counts it; not where it is that further owner.
        allocated: bytes ever charged to it and those below, as of the meter's last look; None where it cannot see them.
        final: the final figures, once it has ended, as `Usage` takes them; making one of them can wait until asked.
    """

    __slots__ = ()

    @property
    def is_active(self) -> bool:
        """Whether it is still open."""
        return not self.ended

    @property
    def usage(self) -> Usage | None:
        """What it used in the end; None while it is open."""
        return None if self.final is None else Usage(*self.final)

    @property
    def steps(self) -> int:
        """Steps that its coroutine has taken since it was opened; 0 where no driver counts them."""
        driver = self.driver() if self.driver is not None else None
        return driver.steps - self.steps_before if driver is not None else 0

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
        if self.final is None:
            return self.meter.look(self)[0]
        left = self.meter.left_alive(self)
        return self.final.retained_bytes if left is None else left

    @property
    def peak_bytes(self) -> int:
        """Its highest live bytes so far."""
        return self.final.peak_bytes if self.final is not None else self.meter.look(self)[1]

    @property
    def refusals(self) -> tuple[int, int]:
        """How many blocks its budget refused, and the most bytes that one of them would have led to."""
        refusals: tuple[int, int] = getattr(self.watch, "refused", (0, 0))  # the native meter's, the one that refuses
        return refusals

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return f"<{self.kind} {self.name!r} {state} meter={self.meter.name}>"


# How much of what an account's owners hold is held by open ones: the rest is what ended ones have left.
#
# Covers: for each account the bytes of its open owners, and of those that outlived an owner of it. Leaves to others: what
# all hold together (`_accounts`), what one holds (the meters).


def held_by_open(owners: Iterable[Owner]) -> dict[int, int]:
    """Return the live bytes of open owners, by the id of each account in whose figures they are.

    Owners whose meter does not know are left out.
    """
    held: dict[int, int] = {}
    for owner in owners:
        live = None if owner.nested else owner.meter.left_alive(owner)
        if live is None:
            continue
        # Up to the account of the one above, whose own figure has these bytes already. Accounts in between are of
        # owners that have ended before this one: it is no leak of theirs as long as it is open.
        above = _nearest_open(owner)
        account = owner.account
        while account.parent is not None and (above is None or account is not above.account):
            held[id(account)] = held.get(id(account), 0) + live
            account = account.parent
    return held


def _nearest_open(owner: Owner) -> Owner | None:
    above = owner.parent
    while above is not None and (above.ended or above.adrift or above.meter is not owner.meter):
        above = above.parent
    return above
