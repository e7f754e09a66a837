"""The fields of an owner, where they are not kept in C (`native/seats.c`).

Leaves to others: what they mean (`_owner`).
"""

import weakref
from math import inf
from typing import TYPE_CHECKING, Any

from memtools.ledger._tally import Tally

if TYPE_CHECKING:
    from memtools.ledger._accounts import Account
    from memtools.ledger._budget import Budget
    from memtools.ledger._driver import Driven
    from memtools.ledger._meters import Meter
    from memtools.ledger._neighbours import Neighbours
    from memtools.ledger._owner import Kind, Owner
    from memtools.ledger._turns import Turn
    from memtools.ledger._usage import Figures


class OwnerFields(Tally):
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
        self.final: Figures | None = None
        self.budget: Budget | None = budget
        self.ceiling: float = inf
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
