"""Frozen records of readings and limits, and the memory level.

A file of its own because every other file of the package needs them.
"""

from enum import IntEnum, StrEnum
from typing import Final, TypeAlias

from memtools._records import record
from memtools.units import format_size

# Virtual, resident, shared and peak memory of one moment, in bytes; None for what the source does not contain.
MemoryFields: TypeAlias = tuple[int, int, int | None, int | None]


class Level(IntEnum):
    """How short memory is. Levels are ordered, so `level >= Level.WARNING` works."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


class LimitSource(StrEnum):
    """Where a limit was set."""

    USER = "user"
    ENVIRONMENT = "MEMTOOLS_LIMIT"
    CGROUP2_MAX = "cgroup2 memory.max"
    CGROUP2_HIGH = "cgroup2 memory.high"
    CGROUP1 = "cgroup1 limit_in_bytes"
    CGROUP1_HIERARCHY = "cgroup1 hierarchical_memory_limit"
    PHYSICAL = "physical memory"
    UNKNOWN = "unknown"


_LEAST_SHARE: Final = 0.005  # less is shown as 0%


@record
class Limit:
    """How much memory this process may use, and where that was set.

    Attributes:
        value_bytes: the limit; None if no source gives one. 0 is a real limit.
        source: where it was set.
        path: the file that contains it; None if it does not come from a file.
        level: how many cgroups above the process's own the limit is set, 0 being its own; None if it is not set in a
            cgroup, or in one that is not visible to this process.
        gaps: files that exist but could not be read or parsed; one of them may contain a lower limit.
    """

    value_bytes: int | None
    source: LimitSource
    path: str | None = None
    level: int | None = None
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        gaps = describe_gaps(self.gaps)
        if self.value_bytes is None:
            return f"no limit known{gaps}"
        up = f", {self.level} level{'s' if self.level > 1 else ''} up" if self.level else ""
        return f"{format_size(self.value_bytes)} ({self.source}{up}{gaps})"


def describe_gaps(gaps: tuple[str, ...]) -> str:
    """Return how many files could not be read, after a semicolon; nothing where there is none."""
    return f"; {len(gaps)} file{'s' if len(gaps) > 1 else ''} could not be read" if gaps else ""


@record
class Reading:
    """How much memory a process uses, and how much it may use, at one moment.

    Attributes:
        used_bytes: memory in use.
        limit_bytes: the limit; None if no limit is known.
        at: when, in seconds of `time.monotonic()`.
    """

    used_bytes: int
    limit_bytes: int | None
    at: float

    @property
    def fraction(self) -> float | None:
        """The share of the limit in use, above 1.0 beyond it; None without a limit.

        With a limit of 0 it is infinite, or 1.0 if nothing is used.
        """
        if self.limit_bytes is None:
            return None
        if self.limit_bytes == 0:
            return float("inf") if self.used_bytes else 1.0
        return self.used_bytes / self.limit_bytes

    def __str__(self) -> str:
        if self.limit_bytes is None:
            return f"{format_size(self.used_bytes)}, no limit known"
        fraction = self.fraction or 0.0
        # Of the memory of a whole machine, a share that rounds to nothing says nothing.
        share = f" ({fraction:.0%})" if self.limit_bytes and fraction >= _LEAST_SHARE else ""
        return f"{format_size(self.used_bytes)} of {format_size(self.limit_bytes)}{share}"
