"""The small arguments of a monitor, and the error for starting it twice.

Leaves to others: thresholds (`_thresholds`).
"""

from memtools.errors import ConfigError, MemtoolsError
from memtools.monitor._interval import Pace
from memtools.monitor._operations import presentable
from memtools.units import parse_seconds


class AlreadyStarted(MemtoolsError, RuntimeError):
    """A monitor was started while it is started.

    Attributes:
        name: the monitor's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} is started already: stop it first, or make a second monitor"


def parse_name(name: object) -> str:
    """Return `name` as logs may show it; ConfigError for what is no text."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("name", name, "a text that is not empty")
    return presentable(name)


def parse_positive(seconds: object, name: str) -> float:
    """Return `seconds` above 0; ConfigError for anything else."""
    parsed = parse_seconds(seconds, name=name)
    if parsed == 0:
        raise ConfigError(name, seconds, "seconds as a number above 0")
    return parsed


def parse_pace(shortest: object, longest: object) -> Pace:
    """Return the pace between the two intervals; ConfigError for what makes no sense."""
    shortest_s, longest_s = parse_positive(shortest, "min_interval"), parse_positive(longest, "max_interval")
    if shortest_s > longest_s:
        raise ConfigError("min_interval", shortest, f"at most max_interval={longest!r}")
    return Pace(shortest_s, longest_s)
