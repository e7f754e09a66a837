"""Hold a password or an address that lets its owner in, so that no repr, log or pickle shows it.

Leaves to others: who uses it (`_slack`, `_webhook`, `_mail`, `apprise`).
"""

from typing import Final, NoReturn

from memtools.errors import ConfigError

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
