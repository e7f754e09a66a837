"""Tell the log: the channel that is always there.

Leaves to others: where the log goes (the `logging` of the service).
"""

import logging

from memtools.alerts._alert import Alert, AlertKind
from memtools.alerts._deadline import Deadline
from memtools.alerts._wording import lines_of, subject_of
from memtools.readings import Level

_log = logging.getLogger("memtools.alerts")


class LogChannel:
    """Writes alerts to the logger `memtools.alerts`: as warning, critical, and information when it is over."""

    def open(self) -> None:
        """Do nothing: a logger needs no preparation."""

    def send(self, alert: Alert, deadline: Deadline, /) -> None:  # noqa: ARG002  # a logger knows no deadline
        """Log `alert` in one line."""
        more = "; ".join(f"{label} {text}" for label, text in lines_of(alert))
        _log.log(_severity(alert), "%s (%s)", subject_of(alert), more)

    def close(self) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "LogChannel()"


def _severity(alert: Alert) -> int:
    if alert.kind is AlertKind.RESOLVED:
        return logging.INFO
    return logging.CRITICAL if alert.level is Level.CRITICAL else logging.WARNING
