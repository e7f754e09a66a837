"""The limit that holds for this process, and who set it.

Leaves to others: how it is found (`_limit_reader`).
"""

from enum import IntEnum, StrEnum

from memtools._records import record
from memtools.errors import MemtoolsError
from memtools.units import format_size

# How short memory is, in one word that all rooms share.
#
# Leaves to others: when a level is entered and left (`memtools.monitor`), what is given back at each
# (`memtools.cleanup`).


class Level(IntEnum):
    """How short memory is. Ordered, so that `level >= Level.WARNING` reads as it sounds."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


class LimitSource(StrEnum):
    """Who set a limit."""

    USER = "user"
    ENVIRONMENT = "MEMTOOLS_LIMIT"
    CGROUP2_MAX = "cgroup2 memory.max"
    CGROUP2_HIGH = "cgroup2 memory.high"
    CGROUP1 = "cgroup1 limit_in_bytes"
    CGROUP1_HIERARCHY = "cgroup1 hierarchical_memory_limit"
    PHYSICAL = "physical memory"
    UNKNOWN = "unknown"


@record
class Limit:
    """How much memory this process may use, and who says so.

    Attributes:
        value_bytes: the limit; None when nothing here tells one. 0 is a real limit.
        source: who set it.
        path: the file that says so, if a file does.
        level: how many cgroups above our own the limit stands, 0 being our own; None where it is none of a cgroup, or
            of one that cannot be seen from here.
        gaps: files that exist and could not be read or understood; a lower limit may hide in them.
    """

    value_bytes: int | None
    source: LimitSource
    path: str | None = None
    level: int | None = None
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value_bytes is None:
            return "no limit known"
        up = f", {self.level} level{'s' if self.level > 1 else ''} up" if self.level else ""
        gaps = f"; {len(self.gaps)} file{'s' if len(self.gaps) > 1 else ''} could not be read" if self.gaps else ""
        return f"{format_size(self.value_bytes)} ({self.source}{up}{gaps})"


# One measurement of the process against its limit.
#
# Leaves to others: how the figures are read (`_resident`, `_limit`), what is made of them (`memtools.monitor`).


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


# The error for a figure that nobody can give.
#
# A wrong number would be worse: budgets and thresholds act on it.


class ReadingError(MemtoolsError, OSError):
    """The operating system did not give a figure of this process, and there is no second way to it.

    `errno`, `strerror` and `filename` say why, as in every `OSError`: most often the process has no file descriptor
    left (EMFILE), or /proc is not mounted.
    """
