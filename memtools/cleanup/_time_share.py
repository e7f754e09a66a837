"""Clean-up may take a small share of wall time and no more.

Covers: what may be spent now.
Leaves to others: what it is spent on (`_ladder`).
"""

_GRANTED_S = 15.0  # wall time whose share is granted in advance, or nothing could be done in the first seconds
_KEPT_S = 60.0  # wall time whose share is kept at most: after a quiet hour the loop must not be stopped for minutes


class TimeShare:
    """A purse that fills at the pace of wall time.

    The share of the first 15 seconds is there from the beginning, and so none comes in during them: from then on, what
    was spent is never more than the share of all wall time since, but for the last expense, which may overdraw the
    purse and is paid back before the next.

    Args:
        share: of wall time, above 0 and up to 1.
        now: the time, in seconds of a monotonic clock.
    """

    __slots__ = ("_credit_s", "_filled_at", "_share", "spent_s")

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._credit_s = share * _GRANTED_S
        self._filled_at = now + _GRANTED_S
        self.spent_s: float = 0.0

    def credit_s(self, now: float) -> float:
        """Return what may be spent now, in seconds; 0 or less means that nothing may."""
        if now > self._filled_at:
            self._credit_s = min(self._credit_s + self._share * (now - self._filled_at), self._share * _KEPT_S)
            self._filled_at = now
        return self._credit_s

    def spend(self, seconds: float) -> None:
        """Take what was spent out of the purse."""
        self._credit_s -= seconds
        self.spent_s += seconds
