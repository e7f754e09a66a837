"""An account around the body of a test, whatever runs inside it.

Covers: opening and ending an owner from two hooks of a test runner, its figures meanwhile and afterwards.
Leaves to others: the hooks (`pytest_memtools`), rounds and verdicts (`_hunt`).

A test runner calls the body from a generator of its own, so that a `with memory_scope(...)` there would be followed
through the steps of that generator. What is wanted is the thread's turn from here to there: event loops that run
inside included.
"""

from memtools.ledger import Meter, Owner, Usage, end_owner, open_owner, usage_of


class Around:
    """The account of one test's body.

    Args:
        name: the name of the test.
        meter: who counts.
    """

    def __init__(self, name: str, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._owner: Owner | None = None

    def open(self) -> Owner:
        """Begin to charge this thread to the test; a second time after the end begins anew."""
        self._owner = open_owner(self._name, "scope", meter=self._meter)
        return self._owner

    def end(self, *, failed: bool = False) -> None:
        """Charge it no longer; nothing happens before it was opened and after it has ended."""
        if self._owner is not None and not self._owner.ended:
            end_owner(self._owner, failed=failed)

    @property
    def usage(self) -> Usage | None:
        """What it used so far, or in the end; None before it was opened."""
        return usage_of(self._owner) if self._owner is not None else None

    @property
    def current_bytes(self) -> int:
        """What it holds now."""
        return self._owner.live_bytes if self._owner is not None else 0

    @property
    def peak_bytes(self) -> int:
        """The most it held at once."""
        return self._owner.peak_bytes if self._owner is not None else 0
