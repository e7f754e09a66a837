"""Who is to be told, as rules name them: a channel by its name, or an apprise URL, which is a secret.

Leaves to others: what stands behind a name (`_wiring`).
"""

import re
from collections.abc import Iterable
from typing import Final

from memtools.alerts._listed import listed
from memtools.alerts._secret import HIDDEN, Secret, unshown
from memtools.errors import ConfigError

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
