"""What an owner may use, and what follows when it uses more.

Covers: the limit, the figure that is held against it, the error, warning or callback. Leaves to others: when it is
looked at (`_driver` after each step, `memtools.scopes` at the end).
"""

import logging
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, emit
from memtools.records import record

if TYPE_CHECKING:
    from memtools.ledger import _native
    from memtools.ledger._owner import Owner

Measure: TypeAlias = Literal["peak", "retained", "resident"]
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
