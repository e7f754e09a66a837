"""Leave out for a while what fails each time, and try it again now and then.

Leaves to others: what counts as a failure.
"""

_FAILURES = 5  # in a row
_RETRY_AFTER_S = 300.0


class Breaker:
    """Closed: it may be called. Open, after five failures in a row: not for five minutes. Then one trial decides.

    Times are seconds of a monotonic clock.
    """

    __slots__ = ("_in_a_row", "_retry_at")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._retry_at = float("-inf")

    def is_open(self, now: float) -> bool:
        """Whether to leave it out now."""
        return self._in_a_row >= _FAILURES and now < self._retry_at

    def succeeded(self) -> None:
        """A call went well."""
        self._in_a_row = 0

    def failed(self, now: float) -> None:
        """A call went wrong."""
        self._in_a_row += 1
        self._retry_at = now + _RETRY_AFTER_S
