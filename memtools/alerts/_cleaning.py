"""What `immediate_cleanup` does: it asks a monitor, a ladder, or whatever gives memory back.

Leaves to others: when it is asked (`_actions`), the steps (`memtools.cleanup`).
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from memtools.alerts._rules import AlertRule
from memtools.alerts._threshold_edge import exit_bytes
from memtools.cleanup import Ladder, default_steps
from memtools.errors import ConfigError
from memtools.readings import effective_limit, resident_bytes

# Any: what it returns is not looked at, unless it can be awaited.
CleanUp: TypeAlias = Callable[[AlertRule], Any]


@runtime_checkable
class Cleaner(Protocol):
    """Something of your own that gives memory back when asked; `clean_up` may be a coroutine function."""

    def clean_up(self) -> Any:  # Any: as above
        """Give memory back now."""
        ...


@runtime_checkable
class Checking(Protocol):
    """A `MemoryMonitor`, as far as alerts know it."""

    def check(self) -> Any:  # Any: as above
        """Look at memory now, and act by its own thresholds."""
        ...


def parse_cleaner(value: object) -> CleanUp:
    """Return what cleans up for a rule.

    Raises:
        ConfigError: for what is no monitor, ladder, cleaner or callable.
    """
    if value is None:
        return _by_ladder(Ladder(default_steps(), read=resident_bytes))
    if isinstance(value, Ladder):
        return _by_ladder(value)
    if isinstance(value, Cleaner):
        clean_up = value.clean_up
        return lambda _: clean_up()
    if isinstance(value, Checking):
        return _by_monitor(value)
    if callable(value):
        return lambda _: value()
    accepted = "a MemoryMonitor, a Ladder, something with a method clean_up, or a callable"
    raise ConfigError("monitor", value, accepted)


def _by_monitor(monitor: Checking) -> CleanUp:
    ladder = Ladder(default_steps(), read=resident_bytes)

    def clean_up(rule: AlertRule) -> Any:  # Any: as above
        # The monitor acts by its own thresholds, which may stand above the rule's.
        return ladder.climb(rule.level, _target_bytes(rule)) if rule.is_thresholded else monitor.check()

    return clean_up


def _by_ladder(ladder: Ladder) -> CleanUp:
    return lambda rule: ladder.climb(rule.level, _target_bytes(rule))


def _target_bytes(rule: AlertRule) -> int:
    # Without a threshold of its own: 0, which is never reached, hence all steps of the level.
    limit_bytes = effective_limit().value_bytes
    entry_bytes = rule.entry_bytes(limit_bytes)
    return 0 if entry_bytes is None else exit_bytes(entry_bytes, limit_bytes)
