"""Take the turn and give it back around each step of something that runs in steps.

For code whose caller goes on between its steps in the same task and the same context: the frame of a generator, the
steps of an asynchronous generator. Both what is charged on the thread and what is active in the context change hands.
"""

from memtools.ledger._current import active, get_active, give_turn, per_thread
from memtools.ledger._owner import Owner


class Turn:
    """The turn of one owner that runs in steps; made while its owner has the turn.

    Attributes:
        owner: who has the turn during a step.
        before: who had it on the thread before the present step.
        active_before: who was active in the context then.
        is_taken: whether a step is running.
    """

    __slots__ = ("_active_inside", "active_before", "before", "is_taken", "owner")

    def __init__(self, owner: Owner, active_before: Owner | None) -> None:
        self.owner: Owner = owner
        self.before = owner.outer
        self.active_before = active_before
        self.is_taken: bool = True
        self._active_inside: Owner | None = owner
        owner.turn = self

    def take(self) -> None:
        """Begin a step."""
        if self.is_taken:
            return
        slot = per_thread.slot
        self.is_taken = True
        self.before = slot.owner
        before = self.active_before = get_active()
        if before is not self._active_inside:
            active.set(self._active_inside)
        give_turn(slot, self.owner.charged)

    def give_back(self) -> None:
        """End a step: whoever had the turn before goes on, while the owner stays open."""
        if not self.is_taken:
            return
        self.is_taken = False
        give_turn(per_thread.slot, self.before)
        # The consumer of a generator shares this context: what it opens is no child of ours.
        inside = self._active_inside = get_active()
        if inside is not self.active_before:
            active.set(self.active_before)

    def let_go(self, owner: Owner) -> tuple[Owner | None, Owner | None]:
        """Say who gets the turn, and who is active, after `owner`, which is about to end."""
        owner.turn = None
        return self.before, self.active_before
