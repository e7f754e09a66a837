"""Channels of memtools: the log, Slack, webhooks and mail."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from memtools._records import as_dict
from memtools.alerts._message import Alert, AlertKind, detail_lines, slack_text, subject
from memtools.alerts._protocol import Channel, Deadline
from memtools.alerts._rules import (
    LOG,
    AlertRule,
    Recipient,
    Secret,
    as_tuple,
    hidden,
    parse_address,
    parse_name,
    parse_secret,
)
from memtools.alerts.apprise import AppriseChannel
from memtools.errors import ConfigError
from memtools.readings import Level
from memtools.units import parse_choice, parse_count

if TYPE_CHECKING:
    from memtools.alerts._transport import HttpClient, SmtpClient

_log = logging.getLogger("memtools.alerts")

Security: TypeAlias = Literal["starttls", "tls", "none"]

_TLS_PORT: Final = 465  # "submissions", RFC 8314
_ADDRESS: Final = re.compile(r"[^\s<>()\[\],;:\\\"@]{1,64}@[^\s<>()\[\],;:\\\"@]{1,255}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: a token

# Characters. Sources: https://api.slack.com/reference/block-kit/blocks (section, fields) and
# https://api.slack.com/methods/chat.postMessage (the text: 4,000 as a rule).
_MAX_SECTION_LENGTH: Final = 3_000
_MAX_FIELD_LENGTH: Final = 2_000
_MAX_FIELDS: Final = 10
_EMOJIS: Final = {Level.WARNING: ":warning:", Level.CRITICAL: ":rotating_light:"}


class LogChannel:
    """Writes alerts to the logger `memtools.alerts`: as warning or critical, and as information when resolved."""

    def open(self) -> None:
        """Do nothing: a logger needs no preparation."""

    def send(self, alert: Alert, deadline: Deadline, /) -> None:  # noqa: ARG002  # loggers take no deadline
        """Log `alert` in one line."""
        more = "; ".join(f"{label} {text}" for label, text in detail_lines(alert))
        _log.log(_severity(alert), "%s (%s)", subject(alert), more)

    def close(self) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "LogChannel()"


class SlackChannel:
    """Posts alerts to an incoming webhook of Slack or a compatible service (Mattermost, Rocket.Chat).

    Args:
        url: the address of the webhook; it works without a password, so it is never shown.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for anything but an http or https URL.
    """

    def __init__(self, url: str, *, cafile: str | None = None) -> None:
        self._endpoint = _HttpEndpoint(url, cafile)

    def open(self) -> None:
        """Import the HTTP client and read the certificates."""
        self._endpoint.open()

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Post `alert`.

        Raises:
            DeliveryFailed: with the status of the answer, or why there was none.
        """
        body = json.dumps(slack_message(alert)).encode("ascii")
        self._endpoint.post(body, {"Content-Type": "application/json; charset=utf-8"}, deadline)

    def close(self) -> None:
        """Release the HTTP client."""
        self._endpoint.close()

    def __repr__(self) -> str:
        return "SlackChannel(url=<hidden>)"


class WebhookChannel:
    """Posts alerts as JSON: the fields of `Alert`, the level by its name, the details as an object.

    A message that may have arrived is posted again, with the same `Idempotency-Key`.

    Args:
        url: the address; it may hold a token, so it is never shown.
        headers: more headers, such as `Authorization`; never shown.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for anything but an http or https URL, and for headers that are not text of one line.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, cafile: str | None = None) -> None:
        self._endpoint = _HttpEndpoint(url, cafile)
        self._headers = _headers(headers or {})

    def open(self) -> None:
        """Import the HTTP client and read the certificates."""
        self._endpoint.open()

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Post `alert`.

        Raises:
            DeliveryFailed: with the status of the answer, or why there was none.
        """
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{alert.incident}-{alert.number}",
            **{name: value.reveal() for name, value in self._headers.items()},
        }
        self._endpoint.post(webhook_body(alert), headers, deadline)

    def close(self) -> None:
        """Release the HTTP client."""
        self._endpoint.close()

    def __repr__(self) -> str:
        return "WebhookChannel(url=<hidden>)"


class _HttpEndpoint:
    """An address to post to; its HTTP client is imported when it is opened, not before.

    Args:
        url: the address, hidden from here on.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for anything but an http or https URL.
    """

    def __init__(self, url: str, cafile: str | None) -> None:
        self._url = parse_address(url, name="url")
        self._cafile = cafile
        self._client: HttpClient | None = None

    def open(self) -> "HttpClient":
        """Import the HTTP client and read the certificates."""
        from memtools.alerts._transport import HttpClient

        self._client = HttpClient(self._url, self._cafile)
        return self._client

    def post(self, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Post `body`.

        Raises:
            DeliveryFailed: when it was not taken.
        """
        client = self._client if self._client is not None else self.open()
        client.post(body, headers, deadline)

    def close(self) -> None:
        """Release the HTTP client."""
        self._client = None


class EmailChannel:
    """Sends alerts by SMTP; the mails of one incident make one thread.

    Args:
        host: the mail server; its certificate has to be for this name.
        port: 465 with `security="tls"` and 587 otherwise, unless given; 25 is usual for servers without either.
        sender: the address that mails come from.
        recipients: one address, or several.
        username: for servers that ask for it; never shown.
        password: for the same; never shown.
        security: `"starttls"`, `"tls"` from the first byte, or `"none"`. Unless given, `"tls"` on port 465, which is
            defined for it (RFC 8314), and `"starttls"` on any other. Certificates are checked, always.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for values that make no sense, for anything but TLS from the first byte on port 465, and for a
            password that would be sent in the clear.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        sender: str,
        recipients: str | Iterable[str],
        username: str | None = None,
        password: str | None = None,
        security: Security | None = None,
        cafile: str | None = None,
    ) -> None:
        self._host = _host(host)
        self._port, self._security = _port_and_security(port, security)
        self._sender = _address(sender, "sender")
        self._recipients = _addresses(recipients)
        self._username = parse_secret(username, name="username")
        self._password = parse_secret(password, name="password")
        self._cafile = cafile
        self._client: SmtpClient | None = None
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
        client = self._client if self._client is not None else self._opened()
        client.send(alert, deadline)

    def close(self) -> None:
        """Release the mail client."""
        self._client = None

    def __repr__(self) -> str:
        return f"EmailChannel({self._host}:{self._port}, {self._security}, {len(self._recipients)} recipients)"

    def _opened(self) -> "SmtpClient":
        from memtools.alerts._transport import SmtpClient

        login = None
        if self._username is not None and self._password is not None:
            login = self._username, self._password
        self._client = SmtpClient(
            self._host,
            self._port,
            sender=self._sender,
            recipients=self._recipients,
            login=login,
            security=self._security,
            cafile=self._cafile,
        )
        return self._client


def resolve_channels(rules: Iterable[AlertRule], given: Mapping[str, Channel]) -> dict[Recipient, Channel]:
    """Return the channel of each recipient that the rules name.

    Raises:
        ConfigError: for a name without a channel, and for an object without the methods of a channel.
    """
    known: dict[Recipient, Channel] = {LOG: LogChannel()}
    for name, channel in given.items():
        if not all(callable(getattr(channel, method, None)) for method in ("open", "send", "close")):
            raise ConfigError("channels", type(channel), "channels, which have the methods open, send and close")
        known[parse_name(name, name="channels")] = channel

    found: dict[Recipient, Channel] = {}
    for recipient in (recipient for rule in rules for recipient in rule.recipients):
        if recipient.url is not None and recipient not in found:
            found[recipient] = AppriseChannel(recipient.url.reveal())
        elif recipient.url is None:
            found[recipient] = _channel_named(recipient, known)
    return found


def _channel_named(recipient: Recipient, known: Mapping[Recipient, Channel]) -> Channel:
    if recipient not in known:
        names = ", ".join(repr(other.name) for other in known)
        raise ConfigError("notify", recipient.name, f"one of the channels: {names}")
    return known[recipient]


def _severity(alert: Alert) -> int:
    if alert.kind is AlertKind.RESOLVED:
        return logging.INFO
    return logging.CRITICAL if alert.level is Level.CRITICAL else logging.WARNING


def slack_message(alert: Alert) -> dict[str, object]:
    """Return `alert` as a message for Slack, escaped and cut; notifications show `text`."""
    title = slack_text(subject(alert), _MAX_SECTION_LENGTH - 50)
    emoji = ":white_check_mark:" if alert.kind is AlertKind.RESOLVED else _EMOJIS[alert.level]
    fields = [
        {"type": "mrkdwn", "text": slack_text(f"*{label}*\n{text}", _MAX_FIELD_LENGTH)}
        for label, text in detail_lines(alert)
    ]
    section = {
        "type": "section",
        "text": {"type": "mrkdwn", "text": f"{emoji} {title}"},
        "fields": fields[:_MAX_FIELDS],
    }
    return {"text": title, "blocks": [section]}


def webhook_body(alert: Alert) -> bytes:
    """Return `alert` as JSON in ASCII, which is UTF-8 as well."""
    fields = as_dict(alert) | {
        "kind": alert.kind.value,
        "level": alert.level.name.lower(),
        "details": dict(alert.details),
    }
    return json.dumps(fields).encode("ascii")


def _headers(value: object) -> dict[str, Secret]:
    accepted = "a mapping of names to values, both text of one line in ASCII"
    if not isinstance(value, Mapping):
        raise ConfigError("headers", hidden(), accepted)
    headers = cast("Mapping[object, object]", value)
    return dict(_header(name, text, accepted) for name, text in headers.items())


def _header(name: object, text: object, accepted: str) -> tuple[str, Secret]:
    if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
        raise ConfigError("headers", hidden(), accepted)
    if not (isinstance(text, str) and text.isascii() and text.isprintable()):
        raise ConfigError("headers", hidden(), accepted)
    return name, Secret(text)


def _port_and_security(port: int | None, security: str | None) -> tuple[int, str]:
    number = 587 if port is None else parse_count(port, name="port")
    if security is None:
        return number, "tls" if number == _TLS_PORT else "starttls"
    chosen = parse_choice(security, ("starttls", "tls", "none"), name="security")
    if port is None and chosen == "tls":
        return _TLS_PORT, chosen
    if number == _TLS_PORT and chosen != "tls":
        raise ConfigError("security", security, "'tls' on port 465, which takes TLS from the first byte; or port 587")
    return number, chosen


def _host(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.strip() or " " in value or "/" in value:
        raise ConfigError("host", value, "the name of a mail server, such as 'smtp.example.org'")
    return value


def _address(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not _ADDRESS.fullmatch(value):
        raise ConfigError(name, value, "an address such as 'ops@example.org'")
    return value


def _addresses(value: object) -> tuple[str, ...]:
    given = as_tuple(value)
    if not given:
        raise ConfigError("recipients", value, "one address such as 'ops@example.org', or several")
    return tuple(dict.fromkeys(_address(item, "recipients") for item in given))
