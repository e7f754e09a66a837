"""Sockets that give up at a moment, however slowly the other side drips.

The timeout of a socket is for each read: a server that sends a byte a second is never late. Here each read gets what
is left of the whole.
Leaves to others: the moment (`_deadline`), HTTP (`_http`), SMTP (`_smtp`).
"""

import socket
import ssl
from typing import Any

from memtools.alerts._deadline import Deadline

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
