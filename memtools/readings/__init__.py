"""How much memory this process uses, and how much it may use.

No other package reads psutil, /proc or cgroups.
"""

from typing import TYPE_CHECKING

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
from memtools.readings._types import Level, Limit, LimitSource, Reading

if TYPE_CHECKING:
    from memtools.readings._resident import ResidentPart, ResidentSplit, split_resident
else:  # a type checker that saw `__getattr__` would accept any name
    from memtools._lazy import dir_of_readings as __dir__  # noqa: F401  # by PEP 562
    from memtools._lazy import getattr_of_readings as __getattr__  # noqa: F401

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
