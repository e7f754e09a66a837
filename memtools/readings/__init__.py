"""How much memory this process uses, and how much it may use.

No other package reads psutil, /proc or cgroups.
"""

from memtools.readings._counters import trim_heap
from memtools.readings._limits import (
    Headroom,
    LimitHeadroom,
    available_bytes,
    effective_limit,
    headroom,
    physical_bytes,
    take_reading,
)
from memtools.readings._process import ProcessMemory, peak_bytes, read_process, resident_bytes, virtual_bytes
from memtools.readings._resident import ResidentPart, ResidentSplit, split_resident
from memtools.readings._types import Level, Limit, LimitSource, Reading

__all__ = [
    "Headroom",
    "Level",
    "Limit",
    "LimitHeadroom",
    "LimitSource",
    "ProcessMemory",
    "Reading",
    "ResidentPart",
    "ResidentSplit",
    "available_bytes",
    "effective_limit",
    "headroom",
    "peak_bytes",
    "physical_bytes",
    "read_process",
    "resident_bytes",
    "split_resident",
    "take_reading",
    "trim_heap",
    "virtual_bytes",
]
