"""The limit that holds for this process, and who set it.

Leaves to others: how it is found (`_limit_reader`).
"""

from enum import StrEnum

from memtools.records import record
from memtools.units import format_size


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
