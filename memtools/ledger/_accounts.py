"""Remember what ended owners used, by name and place, in bounded space.

Covers: one account per (kind, name) below its parent's account, with sums and maxima; what of theirs is still alive,
where the meter knows it, now and after so many calls. Leaves to others: open owners (`_book`, `_open_holdings`), how it
is shown (`memtools.reports`).

Names may come from requests, so there is a bound on names below one account, on the length of a name, and on accounts
in all; what comes later is added up under `<other>`. A function that calls itself has one account, not one per depth.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from memtools.ledger._seats import native_seats
from memtools.records import record

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
class Entry:
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
        left_bytes: the part of it that is left of those that have ended.
        left_after: pairs of a number of calls and the bytes that so many had left when the last of them ended: the last
            four that were a power of two.
    """

    name: str
    kind: str
    entered: int
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
    children: "tuple[Entry, ...]"
    live_bytes: int | None = None
    left_bytes: int | None = None
    left_after: tuple[tuple[int, int], ...] = ()


_native = native_seats()
if TYPE_CHECKING or _native is None:

    class AccountFields:
        """The fields of an account, where they are not kept in C (`native/seats.c`)."""

        __slots__ = (
            "_count", "active", "children", "duration_s", "ended", "entered", "failed", "holdings", "kind", "marks",
            "meter", "name", "note", "parent", "peak", "peak_sum", "retained", "stands_alone", "steps",
        )  # fmt: skip
else:
    AccountFields = _native.AccountFields


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
    ) -> "tuple[Entry, ...]":
        """Return the sums of the accounts below; arguments as for `entry`."""
        return tuple(child.entry(open_figures, held_by_open) for child in self.children.values() if child.is_used)

    def entry(
        self, open_figures: "dict[int, list[tuple[float, float, str]]]", held_by_open: Mapping[int, int]
    ) -> Entry:
        """Return the sums as a tree of records.

        Args:
            open_figures: live bytes, peak bytes and note of the open owners, by the id of their account.
            held_by_open: what open owners hold of an account's live bytes, by its id.
        """
        still_open = open_figures.get(id(self), ())
        notes = [self.note, *(note for _, _, note in still_open)]
        note = next(filter(None, notes), "")
        return Entry(
            name=self.name,
            kind=self.kind,
            entered=self.entered,
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
            left_bytes=self._left_bytes(held_by_open),
            left_after=self.marks,
        )
