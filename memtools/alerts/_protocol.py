"""The protocol of channels: what a channel is, its deadline, and how it fails."""

import errno
import os
import socket
import time
from contextlib import suppress
from ssl import SSLError
from typing import Any, Protocol

from memtools.alerts._message import Alert
from memtools.errors import DeliveryFailed


class Channel(Protocol):
    """A way to send alerts, called by one thread at a time. Write your own: these three methods are all."""

    def open(self) -> None:
        """Import and prepare all that `send` needs. Called at the start, while there is memory.

        What it raises comes out of the start of `Alerts`.
        """
        ...

    def send(self, alert: Alert, deadline: "Deadline", /) -> None:
        """Deliver `alert`, or give up when `deadline.left_s` is 0.

        A call that goes on for longer is abandoned: its thread runs on, and the channel is not called again before the
        call has ended.

        Raises:
            DeliveryFailed: when it could not, with whether to try again. Any other exception is tried again.
        """
        ...

    def close(self) -> None:
        """Release what `open` took. Called at the end, or once a call that was abandoned has ended."""
        ...


class Deadline:
    """The moment at which a delivery has to be over, by `time.monotonic()`.

    Args:
        seconds: how long from now.

    Threads: the thread that delivers asks and registers; `expire` may be called from any.
    """

    __slots__ = ("_at", "_connections")

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._connections: list[Connection] = []

    @property
    def left_s(self) -> float:
        """The seconds that are left, 0 when it is over."""
        return max(0.0, self._at - time.monotonic())

    def remaining_or_raise(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: when there are none.
        """
        left = self.left_s
        if not left:
            raise TimeoutError
        return left

    def register(self, connection: "Connection") -> None:
        """Have the socket of `connection` shut down by `expire`."""
        self._connections.append(connection)

    def expire(self) -> None:
        """Make it over now: a thread that waits at a registered connection wakes up."""
        self._at = float("-inf")
        for connection in self._connections.copy():
            with suppress(Exception):  # of a client that the other thread may be closing at this moment
                sock = connection.sock
                if sock is not None:
                    sock.shutdown(socket.SHUT_RDWR)


class Connection(Protocol):
    """A client with a socket: those of `http.client` and `smtplib`."""

    @property
    def sock(self) -> Any:  # Any: a socket, or None while there is none
        """The socket."""
        ...


def as_delivery_failure(error: BaseException) -> DeliveryFailed:
    """Return what an exception of a channel means; nothing of its text is kept, which may hold an address."""
    if isinstance(error, DeliveryFailed):
        return error
    return DeliveryFailed(_reason_of(error))


def _reason_of(error: BaseException) -> str:
    # urllib wraps the error of the socket; of a TLS error it is a constant such as CERTIFICATE_VERIFY_FAILED.
    wrapped = getattr(error, "reason", None)
    if isinstance(wrapped, OSError):
        error = wrapped
    if isinstance(error, TimeoutError):
        return "no answer in time"
    name = type(error).__name__
    if isinstance(error, socket.gaierror):
        return "the name of the host cannot be resolved"
    # Numbers and constants only: the text of an error may name the address.
    if isinstance(error, SSLError):
        return f"{name} ({wrapped})" if isinstance(wrapped, str) and wrapped.isupper() else name
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:
        return f"{name} ({os.strerror(number)})"
    return name
