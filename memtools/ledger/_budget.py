"""What an owner may use, and what follows when it uses more.

Covers: the limit, the figure that is held against it, the error, warning or callback. Leaves to others: when it is
looked at (`_driver` after each step, `memtools.scopes` at the end).
"""

import logging
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias

from memtools.errors import BudgetExceeded
from memtools.events import BudgetOverrun, emit
from memtools.records import record

if TYPE_CHECKING:
    from memtools.ledger._owner import Owner

Measure: TypeAlias = Literal["peak", "retained", "resident"]
OnExceed: TypeAlias = Literal["raise", "warn"] | Callable[[BudgetExceeded], object]

_log = logging.getLogger("memtools.budget")


@record
class Budget:
    """What an owner may use.

    Attributes:
        limit_bytes: the most that it may use.
        measure: which figure is held against it.
        on_exceed: `"raise"`, `"warn"`, or a callable that is given the error; what it raises is logged.
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

    def note_overrun(self, owner: "Owner", used_bytes: int, *, in_flight: bool) -> BudgetExceeded | None:
        """Tell that the owner is over its budget, once; return the error if it is to be raised."""
        owner.ceiling = inf
        owner.overran = True
        emit(BudgetOverrun(owner.name, owner.kind, used_bytes, self.limit_bytes, self.measure, in_flight))
        error = BudgetExceeded(owner.name, used_bytes, self.limit_bytes, self.measure)
        if self.on_exceed == "raise":
            return error

        if self.on_exceed == "warn":
            _log.warning("High memory increase: %s", error)
            return None
        try:
            self.on_exceed(error)
        except Exception:
            _log.exception("on_exceed of %s failed", owner.name)
        return None
