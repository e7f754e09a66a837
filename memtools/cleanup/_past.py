"""How one registered thing fared when it was asked to shrink.

Leaves to others: asking (`_trim`), keeping it for as long as the thing lives (`_register`).
"""

from memtools.cleanup._breaker import Breaker


class Past:
    """What is remembered of one thing.

    Attributes:
        breaker: leaves it out after failing five times in a row.
        gained_bytes: what it gave back when it was last asked.
        size_bytes: its shallow size when it was last asked.
        failures: how often its `shrink` raised.
        overruns: how often it returned late.
    """

    __slots__ = ("breaker", "failures", "gained_bytes", "overruns", "size_bytes")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.gained_bytes = 0
        self.size_bytes = 0
        self.failures = 0
        self.overruns = 0
