"""How much memory is in use, and out of how much.

The only room that knows psutil, /proc and cgroups. What the figures mean for the service is the monitor's business.
"""

from memtools.readings._counters import Counters, take_counters
from memtools.readings._descriptors import descriptors
from memtools.readings._headroom import Headroom, LevelRoom
from memtools.readings._heap import trim_heap
from memtools.readings._high_water import HighWater
from memtools.readings._host import available_bytes, physical_bytes
from memtools.readings._level import Level
from memtools.readings._limit import Limit, LimitSource
from memtools.readings._malloc import malloc_bytes
from memtools.readings._now import effective_limit, headroom, take_reading
from memtools.readings._process import ProcessMemory, peak_bytes, read_process, resident_bytes, virtual_bytes
from memtools.readings._reading import Reading
from memtools.readings._unreadable import ReadingError

__all__ = [
    "Counters",
    "Headroom",
    "HighWater",
    "Level",
    "LevelRoom",
    "Limit",
    "LimitSource",
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
