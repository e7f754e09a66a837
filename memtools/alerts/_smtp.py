"""Hand a mail to a server within a deadline: STARTTLS or TLS with a checked certificate, then AUTH.

Leaves to others: the letter (`_letter`).

Traps of smtplib: it asks the name server for our own name, which may take half a minute (hence `local_hostname`), and
its timeout is for each read (hence `_wire`).
"""

import smtplib
import socket
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Any

from memtools.alerts._alert import Alert
from memtools.alerts._deadline import Deadline
from memtools.alerts._failure import DeliveryFailed, failure_of
from memtools.alerts._letter import letter_of
from memtools.alerts._secret import Secret
from memtools.alerts._wire import dial, trust, under_deadline

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
