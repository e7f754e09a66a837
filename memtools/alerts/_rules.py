"""Who is told, and what is done, when memory is short: one row of the table of alerts.

Leaves to others: when a rule holds (`_board`), how often it is told (`_life`).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, TypeAlias

from memtools.alerts._alert import Alert
from memtools.alerts._listed import listed
from memtools.alerts._targets import LOG, Target, parse_targets
from memtools.errors import ConfigError
from memtools.readings import Level, effective_limit
from memtools.units import parse_choice, parse_size

LevelName: TypeAlias = Literal["warning", "critical"]
ActionName: TypeAlias = Literal["immediate_cleanup", "log_warning"]
# Any: what an action returns is not looked at, unless it can be awaited.
Action: TypeAlias = Callable[[Alert], Any]
About: TypeAlias = Literal["memory", "reclaim", "budget", "task"]

ABOUT: Final[tuple[About, ...]] = ("memory", "reclaim", "budget", "task")
ACTIONS: Final[tuple[ActionName, ...]] = ("immediate_cleanup", "log_warning")
_LEVELS: Final = {"warning": Level.WARNING, "critical": Level.CRITICAL}
_WHOLE: Final = 10**9


class AlertRule:
    """One row of the table of alerts: at which level or size, what is done, and who is told.

    Args:
        level: `"warning"` or `"critical"`, as words or as a `Level`.
        threshold: used bytes (`"900 MiB"`) or a share of the limit of the reading (`"90%"`) from which the rule
            holds, by the readings that the monitor takes. Without it the monitor's own level decides.
        action: `"immediate_cleanup"` (where it is about memory), `"log_warning"` (the same as telling `"log"`), or a
            callable or coroutine function that takes the `Alert`. It runs when the rule begins to hold, and again
            after each cooldown while it holds.
        notify: names of channels, or apprise URLs; one, or several.
        about: what the rule listens to, of `"memory"`, `"reclaim"` (every step of the clean-up was taken, in vain),
            `"budget"` (an owner used more than its budget) and `"task"` (a task could not be ended). All of them,
            unless there is a threshold, which is about memory. Budgets and tasks are warnings.

    Raises:
        ConfigError: for a value that makes no sense, a percentage where no limit is known, or a rule that does
            nothing and tells nobody.
    """

    __slots__ = ("about", "action", "level", "notify", "share", "threshold_bytes")

    def __init__(
        self,
        level: Level | LevelName,
        threshold: str | float | None = None,
        *,
        action: Action | ActionName | None = None,
        notify: str | Iterable[str] = (),
        about: About | Iterable[About] | None = None,
    ) -> None:
        self.level: Level = _level(level)
        self.share: int | None
        self.threshold_bytes: int | None
        self.share, self.threshold_bytes = _threshold(threshold)
        self.action: Action | ActionName | None = _action(action)
        self.notify: tuple[Target, ...] = parse_targets(notify, name="notify")
        self.about: tuple[About, ...] = _about(about, thresholded=threshold is not None)
        if self.action is None and not self.notify:
            raise ConfigError("notify", (), "a channel to tell, or an action: this rule does neither")

    @property
    def is_thresholded(self) -> bool:
        """Whether the rule holds by a size of its own, rather than by the monitor's level."""
        return self.share is not None or self.threshold_bytes is not None

    def entry_bytes(self, limit_bytes: int | None) -> int | None:
        """Return the used bytes from which the rule holds under this limit; None where that cannot be said."""
        if self.share is None:
            return self.threshold_bytes
        return None if limit_bytes is None else limit_bytes * self.share // _WHOLE

    @property
    def tells(self) -> tuple[Target, ...]:
        """Who is told; `log_warning` is a way to tell the log."""
        return tuple(dict.fromkeys((*self.notify, LOG))) if self.action == "log_warning" else self.notify

    @property
    def runs(self) -> bool:
        """Whether there is something to run."""
        return self.action is not None and self.action != "log_warning"

    def runs_about(self, about: About) -> bool:
        """Return whether there is something to run for this; cleaning up is no answer to a budget or a task."""
        return self.runs and (about == "memory" or self.action != "immediate_cleanup")

    @property
    def action_name(self) -> str:
        """The action in one word, for logs."""
        return self.action if isinstance(self.action, str) else getattr(self.action, "__qualname__", "an action")

    def __repr__(self) -> str:
        shown = "" if not self.is_thresholded else f", threshold={self._threshold_in_words()}"
        action = f", action={self.action_name}" if self.action is not None else ""
        return f"AlertRule({self.level.name.lower()}{shown}{action}, notify={self.notify})"

    def _threshold_in_words(self) -> str:
        if self.share is None:
            return f"{self.threshold_bytes} bytes"
        return f"{self.share * 100 / _WHOLE:g}%"


def _level(value: object) -> Level:
    if isinstance(value, Level) and value is not Level.NORMAL:
        return value
    return _LEVELS[parse_choice(value, tuple(_LEVELS), name="level")]


def _threshold(value: object) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    whole_bytes = parse_size(value, name="threshold", percent_of=lambda: effective_limit().value_bytes)
    if isinstance(value, str) and value.rstrip().endswith("%"):
        # Kept as a share: the limit may change while the process runs, and each reading brings the one that holds.
        return parse_size(value, name="threshold", percent_of=lambda: _WHOLE), None
    return None, whole_bytes


def _action(value: object) -> Any:  # Any: of what it returns nothing is known
    if value is None or callable(value):
        return value
    if not isinstance(value, str) or value not in ACTIONS:
        raise ConfigError("action", value, "'immediate_cleanup', 'log_warning' or a callable that takes the alert")
    return value


def _about(value: object, *, thresholded: bool) -> tuple[About, ...]:
    if value is None:
        return ("memory",) if thresholded else ABOUT
    words = listed(value)
    if not words or not all(word in ABOUT for word in words):
        raise ConfigError("about", value, " or ".join(map(repr, ABOUT)))
    if thresholded and set(words) != {"memory"}:
        raise ConfigError("about", value, "'memory': a threshold says nothing about anything else")
    return tuple(word for word in ABOUT if word in words)
