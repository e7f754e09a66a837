"""Who is charged: an open scope, a decorated call, a task.

Covers: what an owner is and knows. Leaves to others: where its fields are kept (`_owner_fields`, `native/seats.c`), its
arithmetic (`_tally`), opening and ending it (`_book`).
"""

from typing import TYPE_CHECKING, Literal, TypeAlias

from memtools.ledger._seats import native_seats
from memtools.ledger._usage import PEAK, RETAINED, Usage

_native = native_seats()
if TYPE_CHECKING or _native is None:
    from memtools.ledger._owner_fields import OwnerFields
else:
    OwnerFields = _native.OwnerFields

Kind: TypeAlias = Literal["scope", "call", "task"]


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
        return self.final[RETAINED] if left is None else left

    @property
    def peak_bytes(self) -> int:
        """Its highest live bytes so far."""
        return self.final[PEAK] if self.final is not None else self.meter.look(self)[1]

    @property
    def refusals(self) -> tuple[int, int]:
        """How many blocks its budget refused, and the most bytes that one of them would have led to."""
        refusals: tuple[int, int] = getattr(self.watch, "refused", (0, 0))  # the native meter's, the one that refuses
        return refusals

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return f"<{self.kind} {self.name!r} {state} meter={self.meter.name}>"
