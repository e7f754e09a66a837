"""HTTP and SMTP clients of the alert channels.

Imported when a channel is opened, not before: it loads `urllib.request` and `smtplib`. Each operation of a socket has
the rest of the deadline as its timeout. A server that sends a byte now and then is never late by that measure; the
delivery worker abandons such a delivery as a whole and shuts the connection down.
"""

import http.client
import smtplib
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, mktime_tz, parsedate_tz
from functools import partial
from html import escape
from typing import Any, Final, TypeAlias

from memtools.alerts._message import Alert, detail_lines, one_line, subject, text
from memtools.alerts._protocol import Deadline, as_delivery_failure
from memtools.alerts._rules import Secret
from memtools.errors import DeliveryFailed

# The first connection would import this codec, when memory may be short.
"example.org".encode("idna")

_RETRIED_STATUSES: Final = frozenset({408, 425, 429})  # besides 5xx: timeout, too early, too many requests
_MAX_SUBJECT_LENGTH: Final = 200  # characters; mail programs show fewer


class HttpClient:
    """A client that posts to one address, through the proxies that the environment names.

    Redirects are not followed: the message, and the token in its headers, are meant for one address.

    Args:
        url: the address.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        OSError: when the file cannot be read or holds no certificate.
    """

    def __init__(self, url: Secret, cafile: str | None) -> None:
        self._url = url
        self._context = ssl.create_default_context(cafile=cafile)
        self._proxies = urllib.request.ProxyHandler()  # reads the environment

    def post(self, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Post `body`.

        Raises:
            DeliveryFailed: for any answer but 2xx, and when there is none.
        """
        try:
            status, retry_after = self._exchange(body, headers, deadline)
        except Exception as error:  # of sockets, TLS, HTTP, the idna codec
            failure = as_delivery_failure(error)
        else:
            if 200 <= status < 300:
                return
            failure = _http_failure(status, retry_after)
        # Raised outside `except`, so that it has no context, whose text may hold the address.
        raise failure

    def _exchange(self, body: bytes, headers: Mapping[str, str], deadline: Deadline) -> tuple[int, str | None]:
        request = urllib.request.Request(self._url.reveal(), body, {"User-Agent": "memtools", **headers}, method="POST")
        # Without the handlers of `build_opener`: no redirects, no files, and an answer of 500 is an answer.
        opener = urllib.request.OpenerDirector()
        opener.add_handler(self._proxies)
        opener.add_handler(_ConnectionHandler(self._context, deadline))
        response: Any = opener.open(request, timeout=deadline.remaining_or_raise())  # Any: urllib does not say which
        with response:
            response.read1(65_536)  # some servers count an answer that is not read as an error
            return int(response.status), response.headers.get("Retry-After")


class _ConnectionHandler(urllib.request.AbstractHTTPHandler):
    """Opens http and https connections that the deadline shuts down."""

    def __init__(self, context: ssl.SSLContext, deadline: Deadline) -> None:
        super().__init__()
        self._context = context
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an http URL."""
        return self._open(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an https URL."""
        return self._open(partial(http.client.HTTPSConnection, context=self._context), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _open(
        self, connect: Callable[..., http.client.HTTPConnection], request: urllib.request.Request
    ) -> http.client.HTTPResponse:
        def make_connection(host: str, *, timeout: float) -> http.client.HTTPConnection:
            connection = connect(host, timeout=timeout)
            self._deadline.register(connection)
            return connection

        factory: Any = make_connection  # Any: typeshed wants more arguments than `do_open` gives
        return self.do_open(factory, request)


def retry_after_s(text: str | None, now: float) -> float | None:
    """Return the seconds that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3); None if unreadable."""
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


def _http_failure(status: int, retry_after: str | None) -> DeliveryFailed:
    retry = status >= 500 or status in _RETRIED_STATUSES
    hint = "; redirects are not followed: give the address it leads to" if 300 <= status < 400 else ""
    return DeliveryFailed(f"HTTP {status}{hint}", retry, retry_after_s(retry_after, time.time()) if retry else None)


Login: TypeAlias = tuple[Secret, Secret]  # user name and password


class SmtpClient:
    """A client that sends mail by one server.

    Args:
        host: the server; its certificate has to be for this name.
        port: its port.
        sender: the address that mails come from.
        recipients: the addresses that they go to.
        login: user name and password, for servers that ask for them.
        security: `"starttls"`, `"tls"` from the first byte, or `"none"`.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        OSError: when the file cannot be read or holds no certificate.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        sender: str,
        recipients: Sequence[str],
        login: Login | None,
        security: str,
        cafile: str | None,
    ) -> None:
        self._sender = sender
        self._recipients = recipients
        self._login = login
        self._starts_tls = security == "starttls"
        self._begins_with_tls = security == "tls"
        self._context = ssl.create_default_context(cafile=cafile)
        client = partial(smtplib.SMTP_SSL, context=self._context) if security == "tls" else smtplib.SMTP
        # Without a name of our own smtplib asks the name server for one, which may take half a minute.
        self._connect: Callable[..., smtplib.SMTP] = partial(client, host, port, local_hostname=_ehlo_name())

    def send(self, alert: Alert, deadline: Deadline) -> None:
        """Send `alert`.

        Raises:
            DeliveryFailed: when the server has not taken it for any of the recipients.
        """
        message = email_message(alert, sender=self._sender, recipients=self._recipients)
        try:
            client = self._connect(timeout=deadline.remaining_or_raise())
        except Exception as error:  # of sockets, TLS, the greeting
            failure = self._connect_failure(error)
        else:
            try:
                self._send(client, message, deadline)
            except Exception as error:  # of sockets, TLS, smtplib, email
                failure = _smtp_failure(error)
            else:
                return
        # Raised outside `except`, so that it has no context, whose text may hold what was sent.
        raise failure

    def _connect_failure(self, error: Exception) -> DeliveryFailed:
        # The two ways to mistake the port look like a broken network: say what else it may be.
        failure = _smtp_failure(error)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return DeliveryFailed(f"{failure}; the server does not begin with TLS: is it security='starttls'?")
        if isinstance(error, smtplib.SMTPServerDisconnected) and not self._begins_with_tls:
            return DeliveryFailed(f"{failure}; the server does not greet: does it want security='tls'?")
        return failure

    def _send(self, client: smtplib.SMTP, message: EmailMessage, deadline: Deadline) -> None:
        try:
            deadline.register(client)
            if self._starts_tls:
                client.starttls(context=self._context)  # raises where the server refuses it: nothing goes in the clear
            if self._login is not None:
                username, password = self._login
                client.login(username.reveal(), password.reveal())
            client.send_message(message, self._sender, self._recipients)
            _quit_quietly(client)
        finally:
            client.close()


def email_message(alert: Alert, *, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """Return `alert` as a mail.

    All mails of one incident refer to the same first message, whether or not that one has arrived. One that is sent
    again has the same Message-ID, by which mail programs recognise it.
    """
    domain = sender.rpartition("@")[2]
    message = EmailMessage(policy=SMTP)
    message["Subject"] = one_line(subject(alert), _MAX_SUBJECT_LENGTH)
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = formatdate(alert.at, usegmt=True)
    message["Message-ID"] = _message_id(alert, alert.number, domain)
    if alert.number > 1:
        message["In-Reply-To"] = message["References"] = _message_id(alert, 1, domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers by machines
    message.set_content(text(alert))
    message.add_alternative(_html(alert), subtype="html")
    return message


def _message_id(alert: Alert, number: int, domain: str) -> str:
    return f"<memtools.{alert.incident}.{number}@{domain}>"


def _html(alert: Alert) -> str:
    lines = detail_lines(alert)
    rows = "".join(f"<tr><th align=left>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in lines)
    return f"<html><body><p><b>{escape(subject(alert))}</b></p><table>{rows}</table></body></html>\n"


def _quit_quietly(client: smtplib.SMTP) -> None:
    try:
        client.quit()
    except (OSError, smtplib.SMTPException):
        return  # the message has been taken; how the server answers QUIT does not matter


def _smtp_failure(error: Exception) -> DeliveryFailed:
    # Codes only: the text of a server may repeat what it was sent.
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = sorted({int(code) for code, _ in error.recipients.values()})
        refused = ", ".join(map(str, codes))
        return DeliveryFailed(f"no recipient was taken ({refused})", retry=any(code < 500 for code in codes))
    if isinstance(error, smtplib.SMTPResponseException):
        code = int(error.smtp_code)
        return DeliveryFailed(f"{type(error).__name__} {code}", retry=not 500 <= code < 600)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return DeliveryFailed("the server does not offer what is needed: STARTTLS, AUTH or SMTPUTF8", retry=True)
    if isinstance(error, smtplib.SMTPServerDisconnected) and isinstance(error.__context__, TimeoutError):
        return as_delivery_failure(error.__context__)  # smtplib reports a timeout as a connection that was closed
    return as_delivery_failure(error)


def _ehlo_name() -> str:
    # As smtplib has it: a name with a dot, else an address literal (RFC 5321, 4.1.3).
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "[127.0.0.1]"
