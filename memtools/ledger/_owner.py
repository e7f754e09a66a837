"""Who is charged: an open scope, a decorated call, a task.

Covers: what an owner is and knows. Leaves to others: its arithmetic (`_tally`), opening and ending it (`_book`).
"""

import weakref
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from memtools.ledger._tally import Tally
from memtools.ledger._usage import Usage

if TYPE_CHECKING:
    from memtools.ledger._accounts import Account
    from memtools.ledger._budget import Budget
    from memtools.ledger._driver import Driven
    from memtools.ledger._meters import Meter
    from memtools.ledger._neighbours import Neighbours
    from memtools.ledger._turns import Turn

Kind: TypeAlias = Literal["scope", "call", "task"]


class Owner(Tally):
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
        usage: the final figures, once it has ended.
    """

    __slots__ = (
        "__weakref__", "account", "adrift", "allocated", "base", "budget", "budgeted", "ceiling", "charged", "driver",
        "ended", "epoch", "freed_before", "include_children", "is_counted", "is_layered", "kind", "largest", "meter",
        "name", "neighbours", "nested", "note", "opened_at", "outer", "overran", "parent", "resident", "steps_before",
        "turn", "usage", "watch",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: Kind,
        meter: "Meter",
        parent: "Owner | None",
        account: "Account",
        *,
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
        self.usage: Usage | None = None
        self.budget: Budget | None = budget
        self.ceiling: float = budget.ceiling if budget is not None else inf
        self.budgeted: Owner | None = None
        self.overran: bool = False
        self.ended: bool = False
        self.turn: Turn | None = None
        self.nested: bool = False
        self.is_layered: bool = False
        self.is_counted: bool = True
        self.largest: tuple[tuple[str, int], ...] = ()
        # Weak: a pending task that nobody wants any more must not live on by our list of open owners.
        self.driver: weakref.ref[Driven[Any]] | None = None  # Any: whatever its coroutine returns
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

    @property
    def is_active(self) -> bool:
        """Whether it is still open."""
        return not self.ended

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
        if self.usage is None:
            return self.meter.look(self)[0]
        left = self.meter.left_alive(self)
        return self.usage.retained_bytes if left is None else left

    @property
    def peak_bytes(self) -> int:
        """Its highest live bytes so far."""
        return self.usage.peak_bytes if self.usage is not None else self.meter.look(self)[1]

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return f"<{self.kind} {self.name!r} {state} meter={self.meter.name}>"
