"""How a cache fares, as one frozen record.

Leaves to others: how the figures are counted (`_store`).
"""

from memtools.records import record


@record
class CacheStatistics:
    """How a cache fared since it was made, and what is in it now.

    Attributes:
        hits: how often a key that was asked for was there.
        misses: how often it was not.
        strong: entries that the strong tier keeps alive.
        weak: entries that only live because somebody else holds the value.
        unreferable: those among `strong` that cannot be weakly referenced, so that they end with their place there.
        strong_bytes: shallow size of the strong tier, in bytes; None where no `max_bytes` asks for it.
        evictions: entries that the strong tier let go by itself: for want of room, by age, or to give memory back.
        expirations: entries that ended by age, strong or weak.
        making: factories that run now.
        hook_failures: calls of `on_evict` that raised.
    """

    hits: int
    misses: int
    strong: int
    weak: int
    unreferable: int
    strong_bytes: int | None
    evictions: int
    expirations: int
    making: int
    hook_failures: int

    @property
    def hit_ratio(self) -> float:
        """The share of hits, from 0 to 1; 0 before the first question."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
