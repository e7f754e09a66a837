"""What a channel is: a way to tell people.

Leaves to others: the ways that there are (`_log_channel`, `_slack`, `_webhook`, `_mail`, `apprise`).
"""

from typing import Protocol

from memtools.alerts._alert import Alert
from memtools.alerts._deadline import Deadline


class Channel(Protocol):
    """A way to tell people, called by one thread at a time. Write your own: these three methods are all."""

    def open(self) -> None:
        """Import and prepare all that `send` needs. Called at the start, while there is memory.

        What it raises comes out of the start of `Alerts`.
        """
        ...

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Deliver `alert`, or give up when `deadline.left_s` is 0.

        Raises:
            DeliveryFailed: when it could not, with whether to try again. Any other exception is tried again.
        """
        ...

    def close(self) -> None:
        """Let go of what `open` took. Called at the end."""
        ...
