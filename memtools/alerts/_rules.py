"""Rules of alerts: when they hold, what is done, and the recipients."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

from memtools.alerts._message import Alert
from memtools.errors import ConfigError
from memtools.readings import Level, effective_limit
from memtools.units import parse_choice, parse_size


def as_tuple(value: object) -> tuple[object, ...]:
    """Return `value` as a tuple: text as one item, an iterable as its items, anything else as no item."""
    if isinstance(value, str):
        return (value,)
    return tuple(cast("Iterable[object]", value)) if isinstance(value, Iterable) else ()


HIDDEN: Final = "<hidden>"


class Secret:
    """A password, or an address that lets its holder in: no repr, log or pickle shows it, only `reveal()`."""

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
        raise ConfigError(name, _Hidden(), accepted)
    if "@" in host.partition("?")[0]:  # the HTTP client takes all of it for the name of the host
        raise ConfigError(name, _Hidden(), accepted)
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise ConfigError(name, _Hidden(), accepted)
    return Secret(f"{scheme.lower()}://{rest}")


def parse_secret(value: object, *, name: str) -> Secret | None:
    """Return a password or a token, hidden; None stays None.

    Raises:
        ConfigError: for anything but text; the error does not show what was given.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(name, _Hidden(), "text that is not empty")
    return Secret(value)


class _Hidden:
    """The stand-in for a rejected secret in an error."""

    def __repr__(self) -> str:
        return HIDDEN


def hidden() -> object:
    """Return what an error shows instead of a rejected value that may be a secret."""
    return _Hidden()


_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,39})://\S+")
_ACCEPTED: Final = "the name of a channel such as 'slack', or an apprise URL; or several"


class Recipient:
    """A channel by its name, or an apprise URL, of which only the scheme is shown."""

    __slots__ = ("_key", "name", "url")

    def __init__(self, name: str, url: Secret | None = None) -> None:
        self.name = name
        self.url = url
        self._key = name if url is None else url.reveal()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipient) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return self.name


LOG: Final = Recipient("log")


def parse_recipients(value: object, *, name: str) -> tuple[Recipient, ...]:
    """Return the recipients in `value`, one text or several, each once.

    Raises:
        ConfigError: for anything else; the error does not show it, as it may be a mistyped URL.
    """
    given = as_tuple(value)
    if not isinstance(value, Iterable):
        raise ConfigError(name, hidden(), _ACCEPTED)
    return tuple(dict.fromkeys(_recipient(item, name) for item in given))


def parse_name(value: object, *, name: str) -> Recipient:
    """Return the recipient for the name of a channel.

    Raises:
        ConfigError: for anything that is no such name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(name, hidden(), "names of letters, digits, '_', '.' and '-' as its keys")
    return Recipient(value)


def _recipient(value: object, name: str) -> Recipient:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return Recipient(value)
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(name, hidden(), _ACCEPTED)
    return Recipient(f"{match[1]}://{HIDDEN}", Secret(match[0]))


LevelName: TypeAlias = Literal["warning", "critical"]
ActionName: TypeAlias = Literal["immediate_cleanup", "log_warning"]
# Any: the result of an action is ignored, unless it can be awaited.
Action: TypeAlias = Callable[[Alert], Any]
Category: TypeAlias = Literal["memory", "reclaim", "budget", "task", "forecast", "death"]

CATEGORIES: Final[tuple[Category, ...]] = ("memory", "reclaim", "budget", "task", "forecast", "death")
ACTIONS: Final[tuple[ActionName, ...]] = ("immediate_cleanup", "log_warning")
_LEVELS: Final = {"warning": Level.WARNING, "critical": Level.CRITICAL}
_SHARE_SCALE: Final = 10**9


class AlertRule:
    """One row of the table of alerts: from which level or size on, what is done, and which channels are notified.

    Args:
        level: `"warning"` or `"critical"`, as text or as a `Level`.
        threshold: used bytes (`"900 MiB"`) or a share of the limit of the reading (`"90%"`) from which the rule
            holds, by the readings that the monitor takes. Without it the monitor's own level decides.
        action: `"immediate_cleanup"` (for the category `"memory"` only), `"log_warning"` (the same as `notify="log"`),
            or a callable or coroutine function that takes the `Alert`. It runs when the rule begins to hold, and again
            after each cooldown while it holds.
        notify: names of channels, or apprise URLs; one, or several.
        categories: the events that the rule is for, of `"memory"`, `"reclaim"` (all clean-up steps ran, and memory is
            still short), `"budget"` (an owner used more than its budget), `"task"` (a task did not end when it was
            cancelled), `"forecast"` (memory rises towards its limit, with `MemoryMonitor(forecast=True)`) and `"death"`
            (an earlier run was killed: `memtools.black_box`). All of them, unless there is a threshold, which is for
            memory. Budgets, tasks and forecasts are warnings, except that a forecast of less than an hour is critical;
            a death is a warning, and critical where memory was exhausted.

    Raises:
        ConfigError: for a value that makes no sense, a percentage where no limit is known, or a rule without
            an action and a channel.
    """

    __slots__ = ("action", "categories", "level", "notify", "share", "threshold_bytes")

    def __init__(
        self,
        level: Level | LevelName,
        threshold: str | float | None = None,
        *,
        action: Action | ActionName | None = None,
        notify: str | Iterable[str] = (),
        categories: Category | Iterable[Category] | None = None,
    ) -> None:
        self.level: Level = _level(level)
        self.share: int | None
        self.threshold_bytes: int | None
        self.share, self.threshold_bytes = _threshold(threshold)
        self.action: Action | ActionName | None = _action(action)
        self.notify: tuple[Recipient, ...] = parse_recipients(notify, name="notify")
        self.categories: tuple[Category, ...] = _categories(categories, is_thresholded=threshold is not None)
        if self.action is None and not self.notify:
            raise ConfigError("notify", (), "a channel to notify, or an action: this rule has neither")

    @property
    def is_thresholded(self) -> bool:
        """Whether the rule holds by a size of its own, rather than by the monitor's level."""
        return self.share is not None or self.threshold_bytes is not None

    def entry_bytes(self, limit_bytes: int | None) -> int | None:
        """Return the used bytes from which the rule holds under this limit; None for a share of an unknown limit."""
        if self.share is None:
            return self.threshold_bytes
        return None if limit_bytes is None else limit_bytes * self.share // _SHARE_SCALE

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The channels that are notified, the log included for `log_warning`."""
        return tuple(dict.fromkeys((*self.notify, LOG))) if self.action == "log_warning" else self.notify

    @property
    def has_action(self) -> bool:
        """Whether the rule has an action to run; `log_warning` is a notification."""
        return self.action is not None and self.action != "log_warning"

    def acts_on(self, category: Category) -> bool:
        """Return whether an action is run for `category`; clean-up does not help with a budget or a task."""
        return self.has_action and (category == "memory" or self.action != "immediate_cleanup")

    @property
    def action_name(self) -> str:
        """The name of the action, for logs."""
        return self.action if isinstance(self.action, str) else getattr(self.action, "__qualname__", "an action")

    def __repr__(self) -> str:
        shown = "" if not self.is_thresholded else f", threshold={self._threshold_text()}"
        action = f", action={self.action_name}" if self.action is not None else ""
        return f"AlertRule({self.level.name.lower()}{shown}{action}, notify={self.notify})"

    def _threshold_text(self) -> str:
        if self.share is None:
            return f"{self.threshold_bytes} bytes"
        return f"{self.share * 100 / _SHARE_SCALE:g}%"


def _level(value: object) -> Level:
    if isinstance(value, Level) and value is not Level.NORMAL:
        return value
    return _LEVELS[parse_choice(value, tuple(_LEVELS), name="level")]


def _threshold(value: object) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    whole_bytes = parse_size(value, name="threshold", percent_of=lambda: effective_limit().value_bytes)
    if isinstance(value, str) and value.rstrip().endswith("%"):
        # Kept as a share: the limit may change while the process runs, and each reading carries the current one.
        return parse_size(value, name="threshold", percent_of=lambda: _SHARE_SCALE), None
    return None, whole_bytes


def _action(value: object) -> Any:  # Any: as `Action`
    if value is None or callable(value):
        return value
    if not isinstance(value, str) or value not in ACTIONS:
        raise ConfigError("action", value, "'immediate_cleanup', 'log_warning' or a callable that takes the alert")
    return value


def _categories(value: object, *, is_thresholded: bool) -> tuple[Category, ...]:
    if value is None:
        return ("memory",) if is_thresholded else CATEGORIES
    given = as_tuple(value)
    if not given or not all(item in CATEGORIES for item in given):
        raise ConfigError("categories", value, " or ".join(map(repr, CATEGORIES)))
    if is_thresholded and set(given) != {"memory"}:
        raise ConfigError("categories", value, "'memory': a rule with a threshold is for memory only")
    return tuple(category for category in CATEGORIES if category in given)
