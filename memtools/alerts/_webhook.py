"""Tell any service that takes JSON by HTTP.

Leaves to others: the request itself (`_posting`).
"""

import json
import re
from collections.abc import Mapping
from typing import Final, cast

from memtools.alerts._alert import Alert
from memtools.alerts._deadline import Deadline
from memtools.alerts._posting import Posting
from memtools.alerts._secret import Secret, unshown
from memtools.errors import ConfigError
from memtools.records import as_dict

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: a token


class WebhookChannel:
    """Posts alerts as JSON: the fields of `Alert`, the level as a word, details as an object.

    A message that may have arrived is posted again; `Idempotency-Key` is then the same.

    Args:
        url: the address; it may hold a token, so it is never shown.
        headers: more headers, such as `Authorization`; never shown.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for what is no http or https URL, and for headers that are no text, or of more than one line.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, cafile: str | None = None) -> None:
        self._posting = Posting(url, cafile)
        self._headers = _headers(headers or {})

    def open(self) -> None:
        """Import the HTTP client and read the certificates."""
        self._posting.open()

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
        self._posting.post(body_of(alert), headers, deadline)

    def close(self) -> None:
        """Let go of the HTTP client."""
        self._posting.close()

    def __repr__(self) -> str:
        return "WebhookChannel(url=<hidden>)"


def body_of(alert: Alert) -> bytes:
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
        raise ConfigError("headers", unshown(), accepted)
    headers = cast("Mapping[object, object]", value)
    return dict(_header(name, text, accepted) for name, text in headers.items())


def _header(name: object, text: object, accepted: str) -> tuple[str, Secret]:
    if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
        raise ConfigError("headers", unshown(), accepted)
    if not (isinstance(text, str) and text.isascii() and text.isprintable()):
        raise ConfigError("headers", unshown(), accepted)
    return name, Secret(text)
