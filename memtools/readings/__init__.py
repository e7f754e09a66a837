"""How much memory is in use, and out of how much.

The only room that knows psutil, /proc and cgroups. What the figures mean for the service is the monitor's business.
"""

from memtools.readings._high_water import HighWater
from memtools.readings._level import Level
from memtools.readings._process import ProcessMemory, peak_bytes, read_process, resident_bytes, virtual_bytes
from memtools.readings._reading import Reading
from memtools.readings._unreadable import ReadingError

__all__ = [
    "HighWater",
    "Level",
    "ProcessMemory",
    "Reading",
    "ReadingError",
    "peak_bytes",
    "read_process",
    "resident_bytes",
    "virtual_bytes",
]
