"""An address to post to, whose HTTP client is imported when it is opened, not before.

Leaves to others: the client (`_http`), what is posted (`_slack`, `_webhook`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memtools.alerts._deadline import Deadline
from memtools.alerts._secret import parse_address

if TYPE_CHECKING:
    from memtools.alerts._http import Poster


class Posting:
    """One address to post to.

    Args:
        url: the address, hidden from here on.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for what is no http or https URL.
    """

    def __init__(self, url: str, cafile: str | None) -> None:
        self._url = parse_address(url, name="url")
        self._cafile = cafile
        self._poster: Poster | None = None

    def open(self) -> "Poster":
        """Import the HTTP client and read the certificates."""
        from memtools.alerts._http import Poster

        self._poster = Poster(self._cafile)
        return self._poster

    def post(self, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Post `body`.

        Raises:
            DeliveryFailed: when it was not taken.
        """
        poster = self._poster if self._poster is not None else self.open()
        poster.post(self._url, body, headers, deadline)

    def close(self) -> None:
        """Let go of the HTTP client."""
        self._poster = None
