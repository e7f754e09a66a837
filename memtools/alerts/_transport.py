"""Hand a mail to a server within a deadline: STARTTLS or TLS with a checked certificate, then AUTH.

Leaves to others: the letter (`_letter`).

Traps of smtplib: it asks the name server for our own name, which may take half a minute (hence `local_hostname`), and
its timeout is for each read (hence `_wire`).
"""

import errno
import http.client
import os
import smtplib
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from ssl import SSLContext, SSLError
from typing import Any, Final, Protocol

from memtools.alerts._message import Alert, letter_of
from memtools.alerts._rules import Secret, parse_address
from memtools.errors import MemtoolsError

# The moment at which a delivery has to be over, and a way to make it come sooner.
#
# Leaves to others: sockets that obey it (`_wire`).
#
# Threads: `cut` may be called from any thread; the rest belongs to the one that delivers.


class Interruptible(Protocol):
    """A socket."""

    def shutdown(self, how: int, /) -> None:
        """End the conversation: whoever waits for the other side wakes up."""
        ...


class Deadline:
    """When to give up, by `time.monotonic()`.

    Args:
        seconds: how long from now.
    """

    __slots__ = ("_at", "_guarded")

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._guarded: list[Interruptible] = []

    @property
    def left_s(self) -> float:
        """Return the seconds that are left, 0 when it is over."""
        return max(0.0, self._at - time.monotonic())

    def require(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: when there are none.
        """
        left = self.left_s
        if not left:
            raise TimeoutError
        return left

    def guard(self, wire: Interruptible) -> None:
        """Have `wire` shut down by `cut`."""
        self._guarded.append(wire)

    def cut(self) -> None:
        """Make it over now: whoever waits at a guarded socket wakes up."""
        self._at = float("-inf")
        for wire in self._guarded.copy():
            with suppress(OSError):
                wire.shutdown(2)  # SHUT_RDWR; the number saves the import of `socket`


# Why a message was not delivered, in words that hold no secret.
#
# Leaves to others: what is done about it (`_outbox`).


class DeliveryFailed(MemtoolsError, OSError):
    """A channel could not deliver an alert.

    Channels raise it; it never leaves the room. Any other exception means the same with `retry=True`, and of it only
    the name of its class is shown: its text may hold an address.

    Attributes:
        reason: what went wrong, in words that may be logged.
        retry: whether trying again makes sense.
        retry_after_s: how long the other side asks to be left alone, in seconds, if it says so.
    """

    def __init__(self, reason: str, retry: bool = True, retry_after_s: float | None = None) -> None:
        super().__init__(reason, retry, retry_after_s)
        self.reason = reason
        self.retry = retry
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


def failure_of(error: BaseException) -> DeliveryFailed:
    """Return what an exception of a channel means; nothing of its text is kept, which may hold an address."""
    if isinstance(error, DeliveryFailed):
        return error
    return DeliveryFailed(_words(error))


def _words(error: BaseException) -> str:
    # urllib wraps the error of the socket; of a TLS error it is a constant such as CERTIFICATE_VERIFY_FAILED.
    wrapped = getattr(error, "reason", None)
    if isinstance(wrapped, OSError):
        error = wrapped
    if isinstance(error, TimeoutError):
        return "no answer in time"
    name = type(error).__name__
    if name == "gaierror":
        return "the name of the host cannot be resolved"
    # Numbers and constants only: the text of an error is the library's, and may name what was asked for.
    if isinstance(error, SSLError):
        return f"{name} ({wrapped})" if isinstance(wrapped, str) and wrapped.isupper() else name
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:
        return f"{name} ({os.strerror(number)})"
    return name


# Sockets that give up at a moment, however slowly the other side drips.
#
# The timeout of a socket is for each read: a server that sends a byte a second is never late. Here each read gets what
# is left of the whole.
# Leaves to others: the moment (`_deadline`), HTTP (`_http`), SMTP (`_smtp`).

# The first connection would import it, when memory may be short.
"example.org".encode("idna")


class Wire(socket.socket):
    """A plain connection under a deadline."""

    deadline: Deadline

    # Any: what the buffer protocol takes has no name before Python 3.12. `makefile` reads by this method.
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read what has come, or give up at the deadline."""
        self.settimeout(self.deadline.require())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send it all, or give up at the deadline."""
        self.settimeout(self.deadline.require())
        super().sendall(data, flags)


class SecureWire(ssl.SSLSocket):
    """A connection by TLS under a deadline."""

    # Set when the handshake is over, which has the timeout of the plain connection, as a whole.
    deadline: Deadline

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Read what has come, or give up at the deadline."""
        self.settimeout(self.deadline.require())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send it all, or give up at the deadline."""
        self.settimeout(self.deadline.require())
        super().sendall(data, flags)


def dial(host: str, port: int, deadline: Deadline) -> Wire:
    """Return a connection, to the first address of `host` that answers.

    Looking up the name is the resolver's business, and under no deadline but its own.

    Raises:
        OSError: when none answers in time.
    """
    failure: OSError | None = None
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(addresses):
        wire = Wire(family, kind, protocol)
        wire.deadline = deadline
        try:
            # A dead address does not use up what the next one needs.
            wire.settimeout(deadline.require() / (len(addresses) - place))
            deadline.guard(wire)
            wire.connect(address)
        except OSError as error:
            wire.close()
            failure = error
        else:
            wire.settimeout(deadline.require())
            return wire
    raise failure if failure is not None else OSError("no address")


def trust(cafile: str | None) -> ssl.SSLContext:
    """Return a context that checks certificates and names, by the system's authorities or those in `cafile`.

    Raises:
        OSError: when the file cannot be read or holds no certificate.
    """
    context = ssl.create_default_context(cafile=cafile)
    context.sslsocket_class = SecureWire
    return context


def under_deadline(wrapped: socket.socket, deadline: Deadline) -> None:
    """Put a connection that `trust` has just secured under the deadline."""
    if isinstance(wrapped, SecureWire):
        wrapped.deadline = deadline
        deadline.guard(wrapped)


# Post by HTTP within a deadline, and say what the answer means.
#
# Covers: proxies from the environment, certificates, what may be tried again, `Retry-After`.
# Leaves to others: what is posted (`_slack`, `_webhook`).
#
# Redirects are not followed: what is posted, and the token in its headers, is meant for one address.

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


# An address to post to, whose HTTP client is imported when it is opened, not before.
#
# Leaves to others: the client (`_http`), what is posted (`_slack`, `_webhook`).


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


_Login = tuple[Secret, Secret]


class Mailer:
    """A mail client.

    Args:
        host: the server.
        port: its port.
        sender: the address that mails come from.
        recipients: where they go.
        login: who we are and the proof of it, if the server wants to know.
        security: `"starttls"`, `"tls"` or `"none"`.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        OSError: when the file cannot be read.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        sender: str,
        recipients: Sequence[str],
        login: _Login | None,
        security: str,
        cafile: str | None,
    ) -> None:
        self._host = host
        self._port = port
        self._sender = sender
        self._recipients = recipients
        self._login = login
        self._security = security
        self._trust = trust(cafile)
        self._greeting = _greeting()

    def mail(self, alert: Alert, deadline: Deadline) -> None:
        """Send `alert`.

        Raises:
            DeliveryFailed: when the server has not taken it for any of the recipients.
        """
        try:
            self._converse(letter_of(alert, sender=self._sender, recipients=self._recipients), deadline)
        except Exception as error:  # of sockets, TLS, smtplib, email
            failure = _failure(error)
        else:
            return
        # Raised out here, so that it has no context, whose text may hold what was sent.
        raise failure

    def _converse(self, letter: EmailMessage, deadline: Deadline) -> None:
        client = _Client(self._greeting, deadline)
        try:
            self._introduce(client, deadline)
            client.send_message(letter, self._sender, self._recipients)
            # It has been taken: how the farewell goes is of no consequence.
            client.bid_farewell()
        finally:
            client.close()

    def _introduce(self, client: "_Client", deadline: Deadline) -> None:
        client.security = self._trust if self._security == "tls" else None
        code, _ = client.connect(self._host, self._port)
        if code != 220:
            raise smtplib.SMTPResponseException(code, b"")
        client.ehlo_or_helo_if_needed()
        if self._security == "starttls":
            client.secure(self._host, self._trust, deadline)
        if self._login is not None:
            username, password = self._login
            client.login(username.reveal(), password.reveal())


class _Client(smtplib.SMTP):
    def __init__(self, greeting: str, deadline: Deadline) -> None:
        super().__init__(local_hostname=greeting, timeout=deadline.require())
        self._deadline = deadline
        self.security: Any = None  # an SSLContext, where TLS comes first

    def secure(self, host: str, context: Any, deadline: Deadline) -> None:
        self._host = host  # the name that the certificate is checked against; `connect` does not keep it
        code, _ = self.starttls(context=context)
        # smtplib goes on in the clear when the server takes it back; the password must not.
        if code != 220 or self.sock is None:
            raise smtplib.SMTPResponseException(code, b"")
        under_deadline(self.sock, deadline)

    def bid_farewell(self) -> None:
        try:
            self.quit()
        except (OSError, smtplib.SMTPException):
            return

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002  # as smtplib calls it
        wire = dial(host, port, self._deadline)
        if self.security is None:
            return wire
        try:
            wrapped: socket.socket = self.security.wrap_socket(wire, server_hostname=host)
        except BaseException:
            wire.close()
            raise
        under_deadline(wrapped, self._deadline)
        return wrapped


def _failure(error: Exception) -> DeliveryFailed:
    # Codes only: what a server says may repeat what it was told.
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({int(code) for code, _ in error.recipients.values()})
        return DeliveryFailed(f"no recipient was taken ({_listed(codes)})", retry=any(code < 500 for code in codes))
    if isinstance(error, smtplib.SMTPResponseException):
        code = int(error.smtp_code)
        return DeliveryFailed(f"{type(error).__name__} {code}", retry=not 500 <= code < 600)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return DeliveryFailed("the server does not offer what is needed: STARTTLS, AUTH or SMTPUTF8", retry=True)
    return failure_of(error)


def _listed(codes: Sequence[int]) -> str:
    return ", ".join(map(str, codes))


def _greeting() -> str:
    # As smtplib, without asking a name server: a name with a dot, else an address literal (RFC 5321, 4.1.3).
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "[127.0.0.1]"
