"""Why a message was not delivered, in words that hold no secret.

Leaves to others: what is done about it (`_outbox`).
"""

import errno
import os
from ssl import SSLError

from memtools.errors import MemtoolsError


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
