"""How much memory is in use, and out of how much.

The only room that knows psutil, /proc and cgroups. What the figures mean for the service is the monitor's business.
"""

from memtools.readings._level import Level
from memtools.readings._reading import Reading

__all__ = ["Level", "Reading"]
