"""How short memory is, in one word that all rooms share.

Leaves to others: when a level is entered and left (`memtools.monitor`), what is given back at each
(`memtools.cleanup`).
"""

from enum import IntEnum


class Level(IntEnum):
    """How short memory is. Ordered, so that `level >= Level.WARNING` reads as it sounds."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2
