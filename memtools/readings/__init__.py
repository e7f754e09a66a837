"""How much memory this process uses, and how much it may use.

No other package reads psutil, /proc or cgroups.
"""

from memtools.errors import ReadingError
from memtools.readings._counters import Counters, descriptors, malloc_bytes, take_counters, trim_heap
from memtools.readings._limits import (
    Headroom,
    LimitHeadroom,
    available_bytes,
    effective_limit,
    headroom,
    physical_bytes,
    take_reading,
)
from memtools.readings._process import PeakSince, ProcessMemory, peak_bytes, read_process, resident_bytes, virtual_bytes
from memtools.readings._types import Level, Limit, LimitSource, Reading

__all__ = [
    "Counters",
    "Headroom",
    "Level",
    "Limit",
    "LimitHeadroom",
    "LimitSource",
    "PeakSince",
    "ProcessMemory",
    "Reading",
    "ReadingError",
    "available_bytes",
    "descriptors",
    "effective_limit",
    "headroom",
    "malloc_bytes",
    "peak_bytes",
    "physical_bytes",
    "read_process",
    "resident_bytes",
    "take_counters",
    "take_reading",
    "trim_heap",
    "virtual_bytes",
]
