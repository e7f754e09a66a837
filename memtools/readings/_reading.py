"""One measurement of the process against its limit.

Leaves to others: how the figures are read (`_resident`, `_limit`), what is made of them (`memtools.monitor`).
"""

from memtools.records import record
from memtools.units import format_size


@record
class Reading:
    """How much memory a process uses, and how much it may use, at one moment."""

    used_bytes: int
    limit_bytes: int | None  # None: nothing is known to stop the process
    at: float  # time.monotonic(), seconds

    @property
    def fraction(self) -> float | None:
        """Share of the limit in use, above 1.0 when over it; None without a limit.

        Anything above a limit of 0 is infinitely too much, and nothing at all is exactly the limit.
        """
        if self.limit_bytes is None:
            return None
        if self.limit_bytes == 0:
            return float("inf") if self.used_bytes else 1.0
        return self.used_bytes / self.limit_bytes

    def __str__(self) -> str:
        if self.limit_bytes is None:
            return f"{format_size(self.used_bytes)}, no limit known"
        share = f" ({self.fraction:.0%})" if self.limit_bytes else ""
        return f"{format_size(self.used_bytes)} of {format_size(self.limit_bytes)}{share}"
