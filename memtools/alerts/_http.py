"""Post by HTTP within a deadline, and say what the answer means.

Covers: proxies from the environment, certificates, what may be tried again, `Retry-After`.
Leaves to others: what is posted (`_slack`, `_webhook`).

Redirects are not followed: what is posted, and the token in its headers, is meant for one address.
"""

import http.client
import time
import urllib.request
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from ssl import SSLContext
from typing import Any, Final

from memtools.alerts._deadline import Deadline
from memtools.alerts._failure import DeliveryFailed, failure_of
from memtools.alerts._secret import Secret
from memtools.alerts._wire import dial, trust, under_deadline

# Besides 5xx: no time, too early, too many.
_WORTH_RETRYING: Final = frozenset({408, 425, 429})


class Poster:
    """An HTTP client that posts.

    Args:
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        OSError: when the file cannot be read.
    """

    def __init__(self, cafile: str | None) -> None:
        self._trust = trust(cafile)
        self._proxies = urllib.request.ProxyHandler()  # reads the environment

    def post(self, url: Secret, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Post `body` to `url`.

        Raises:
            DeliveryFailed: for any answer but 2xx, and when there is none.
        """
        try:
            status, retry_after = self._exchange(url, body, headers, deadline)
        except Exception as error:  # of ten libraries: sockets, TLS, HTTP, idna
            failure = failure_of(error)
        else:
            if 200 <= status < 300:
                return
            failure = _refusal(status, retry_after)
        # Raised out here, so that it has no context, whose text may hold the address.
        raise failure

    def _exchange(
        self, url: Secret, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[int, str | None]:
        request = urllib.request.Request(url.reveal(), body, {"User-Agent": "memtools", **headers}, method="POST")
        # Without the handlers of `build_opener`: no redirects, no files, and an answer of 500 is an answer.
        opener = urllib.request.OpenerDirector()
        opener.add_handler(self._proxies)
        opener.add_handler(_Handler(deadline, self._trust))
        response: Any = opener.open(request, timeout=deadline.require())  # Any: urllib does not say what it opens
        with response:
            response.read(65_536)  # a server may count it as an error when nobody reads its answer
            return int(response.status), response.headers.get("Retry-After")


def retry_after_s(text: str | None, now: float) -> float | None:
    """Return the seconds that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3); None without sense."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    date = parsedate_tz(text)
    try:
        return None if date is None else max(0.0, mktime_tz(date) - now)
    except (OverflowError, ValueError):
        return None


def _refusal(status: int, retry_after: str | None) -> DeliveryFailed:
    retry = status >= 500 or status in _WORTH_RETRYING
    hint = "; redirects are not followed: give the address it leads to" if 300 <= status < 400 else ""
    return DeliveryFailed(f"HTTP {status}{hint}", retry, retry_after_s(retry_after, time.time()) if retry else None)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https by connections under a deadline."""

    def __init__(self, deadline: Deadline, context: SSLContext) -> None:
        super().__init__()
        self._deadline = deadline
        self._context = context

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an http URL."""
        plain: Any = partial(_Connection, deadline=self._deadline)  # Any: it takes just what `do_open` gives it
        return self.do_open(plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an https URL."""
        secure: Any = partial(_SecureConnection, deadline=self._deadline, context=self._context)  # as above
        return self.do_open(secure, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, timeout: float, deadline: Deadline) -> None:
        super().__init__(host, timeout=timeout)
        self._create_connection = partial(_dialled, deadline=deadline)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, timeout: float, deadline: Deadline, context: SSLContext) -> None:
        super().__init__(host, timeout=timeout, context=context)
        self._deadline = deadline
        self._create_connection = partial(_dialled, deadline=deadline)

    def connect(self) -> None:
        super().connect()
        under_deadline(self.sock, self._deadline)


def _dialled(address: tuple[str, int], *_: object, deadline: Deadline) -> Any:  # Any: a socket, by its place in http
    return dial(*address, deadline)
