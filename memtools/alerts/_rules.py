"""Who is told, and what is done, when memory is short: one row of the table of alerts.

Leaves to others: when a rule holds (`_board`), how often it is told (`_life`).
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

from memtools.alerts._message import Alert
from memtools.errors import ConfigError
from memtools.readings import Level, effective_limit
from memtools.units import parse_choice, parse_size

# Arguments that take one of something or several.


def listed(value: object) -> tuple[object, ...]:
    """Return `value` as a tuple: a text alone, what can be walked as what it holds, nothing for the rest."""
    if isinstance(value, str):
        return (value,)
    return tuple(cast("Iterable[object]", value)) if isinstance(value, Iterable) else ()


# Hold a password or an address that lets its owner in, so that no repr, log or pickle shows it.
#
# Leaves to others: who uses it (`_slack`, `_webhook`, `_mail`, `apprise`).

HIDDEN: Final = "<hidden>"


class Secret:
    """A text that is shown only to who asks for it by `reveal()`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def parse_address(value: object, *, name: str) -> Secret:
    """Return an `http` or `https` URL, hidden.

    Raises:
        ConfigError: for anything else; the error does not show what was given.
    """
    accepted = "a URL that begins with https:// or http:// and names a host, without user, password and blanks"
    # `urlsplit` forgives line ends and blanks, which then break the request; `partition` needs no import.
    scheme, found, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    host = rest.partition("/")[0]
    if scheme.lower() not in ("http", "https") or not found or not host.strip("/?#@:"):
        raise ConfigError(name, _Unshown(), accepted)
    if "@" in host.partition("?")[0]:  # the HTTP client takes all of it for the name of the host
        raise ConfigError(name, _Unshown(), accepted)
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise ConfigError(name, _Unshown(), accepted)
    return Secret(f"{scheme.lower()}://{rest}")


def parse_secret(value: object, *, name: str) -> Secret | None:
    """Return a password or a token, hidden; None stays None.

    Raises:
        ConfigError: for anything but text; the error does not show what was given.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(name, _Unshown(), "text that is not empty")
    return Secret(value)


class _Unshown:
    """What stands in an error in the place of a secret that was refused."""

    def __repr__(self) -> str:
        return HIDDEN


def unshown() -> object:
    """Return what an error shows in the place of a refused value that may be a secret."""
    return _Unshown()


# Who is to be told, as rules name them: a channel by its name, or an apprise URL, which is a secret.
#
# Leaves to others: what stands behind a name (`_wiring`).

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,39})://\S+")
_ACCEPTED: Final = "the name of a channel such as 'slack', or an apprise URL; or several"


class Target:
    """A channel by its name, or an apprise URL, of which only the scheme is shown."""

    __slots__ = ("_key", "name", "url")

    def __init__(self, name: str, url: Secret | None = None) -> None:
        self.name = name
        self.url = url
        self._key = name if url is None else url.reveal()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return self.name


LOG: Final = Target("log")


def parse_targets(value: object, *, name: str) -> tuple[Target, ...]:
    """Return the targets in `value`, one text or several, each once.

    Raises:
        ConfigError: for anything else; the error does not show it, as it may be a URL with a slip in it.
    """
    given = listed(value)
    if not isinstance(value, Iterable):
        raise ConfigError(name, unshown(), _ACCEPTED)
    return tuple(dict.fromkeys(_target(one, name) for one in given))


def parse_name(value: object, *, name: str) -> Target:
    """Return the target for the name of a channel.

    Raises:
        ConfigError: for anything that is no such name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(name, unshown(), "names of letters, digits, '_', '.' and '-' as its keys")
    return Target(value)


def _target(value: object, name: str) -> Target:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return Target(value)
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(name, unshown(), _ACCEPTED)
    return Target(f"{match[1]}://{HIDDEN}", Secret(match[0]))


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

    __slots__ = ("action", "categories", "level", "notify", "share", "threshold_bytes")

    def __init__(
        self,
        level: Level | LevelName,
        threshold: str | float | None = None,
        *,
        action: Action | ActionName | None = None,
        notify: str | Iterable[str] = (),
        categories: About | Iterable[About] | None = None,
    ) -> None:
        self.level: Level = _level(level)
        self.share: int | None
        self.threshold_bytes: int | None
        self.share, self.threshold_bytes = _threshold(threshold)
        self.action: Action | ActionName | None = _action(action)
        self.notify: tuple[Target, ...] = parse_targets(notify, name="notify")
        self.categories: tuple[About, ...] = _about(categories, thresholded=threshold is not None)
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
    def recipients(self) -> tuple[Target, ...]:
        """Who is told; `log_warning` is a way to tell the log."""
        return tuple(dict.fromkeys((*self.notify, LOG))) if self.action == "log_warning" else self.notify

    @property
    def has_action(self) -> bool:
        """Whether there is something to run."""
        return self.action is not None and self.action != "log_warning"

    def acts_on(self, category: About) -> bool:
        """Return whether there is something to run for this; cleaning up is no answer to a budget or a task."""
        return self.has_action and (category == "memory" or self.action != "immediate_cleanup")

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
        raise ConfigError("categories", value, " or ".join(map(repr, ABOUT)))
    if thresholded and set(words) != {"memory"}:
        raise ConfigError("categories", value, "'memory': a threshold says nothing about anything else")
    return tuple(word for word in ABOUT if word in words)
