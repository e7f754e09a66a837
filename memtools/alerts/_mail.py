"""Tell people by mail.

Leaves to others: the conversation with the server (`_smtp`), the text of the letter (`_letter`).
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from memtools.alerts._alert import Alert
from memtools.alerts._deadline import Deadline
from memtools.alerts._listed import listed
from memtools.alerts._secret import parse_secret
from memtools.errors import ConfigError
from memtools.units import parse_choice, parse_count

if TYPE_CHECKING:
    from memtools.alerts._smtp import Mailer

Security: TypeAlias = Literal["starttls", "tls", "none"]

_ADDRESS: Final = re.compile(r"[^\s<>()\[\],;:\\\"@]{1,64}@[^\s<>()\[\],;:\\\"@]{1,255}")


class EmailChannel:
    """Sends alerts by SMTP; the mails of one incident make one thread.

    Args:
        host: the mail server; its certificate has to be for this name.
        port: 587 for STARTTLS, 465 for TLS, 25 for neither, as a rule.
        sender: the address that mails come from.
        recipients: one address, or several.
        username: for servers that want to know who sends.
        password: for the same; never shown.
        security: `"starttls"`, `"tls"` from the first byte, or `"none"`. Certificates are checked, always.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for values that make no sense, and for a password that would be sent in the clear.
    """

    def __init__(
        self,
        host: str,
        port: int = 587,
        *,
        sender: str,
        recipients: str | Iterable[str],
        username: str | None = None,
        password: str | None = None,
        security: Security = "starttls",
        cafile: str | None = None,
    ) -> None:
        self._host = _host(host)
        self._port = parse_count(port, name="port")
        self._sender = _address(sender, "sender")
        self._recipients = _addresses(recipients)
        self._username = parse_secret(username, name="username")
        self._password = parse_secret(password, name="password")
        self._security = parse_choice(security, ("starttls", "tls", "none"), name="security")
        self._cafile = cafile
        self._mailer: Mailer | None = None
        if (username is None) != (password is None):
            raise ConfigError("username", None, "username and password together, or neither")
        if self._security == "none" and password is not None:
            raise ConfigError("security", security, "'starttls' or 'tls': the password would be sent in the clear")

    def open(self) -> None:
        """Import the mail client and read the certificates."""
        self._opened()

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Mail `alert`.

        Raises:
            DeliveryFailed: with the code of the server, or why there was none.
        """
        mailer = self._mailer if self._mailer is not None else self._opened()
        mailer.mail(alert, deadline)

    def close(self) -> None:
        """Let go of the mail client."""
        self._mailer = None

    def __repr__(self) -> str:
        return f"EmailChannel({self._host}:{self._port}, {self._security}, {len(self._recipients)} recipients)"

    def _opened(self) -> "Mailer":
        from memtools.alerts._smtp import Mailer

        login = None
        if self._username is not None and self._password is not None:
            login = self._username, self._password
        self._mailer = Mailer(
            self._host,
            self._port,
            sender=self._sender,
            recipients=self._recipients,
            login=login,
            security=self._security,
            cafile=self._cafile,
        )
        return self._mailer


def _host(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.strip() or " " in value or "/" in value:
        raise ConfigError("host", value, "the name of a mail server, such as 'smtp.example.org'")
    return value


def _address(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not _ADDRESS.fullmatch(value):
        raise ConfigError(name, value, "an address such as 'ops@example.org'")
    return value


def _addresses(value: object) -> tuple[str, ...]:
    given = listed(value)
    if not given:
        raise ConfigError("recipients", value, "one address such as 'ops@example.org', or several")
    return tuple(dict.fromkeys(_address(one, "recipients") for one in given))
