"""What is told: one message about one incident.

Leaves to others: when it is told (`_life`, `_board`), to whom (`_outbox`), in which form (the channels).
"""

from enum import StrEnum

from memtools.readings import Level
from memtools.records import record


class AlertKind(StrEnum):
    """Where in the life of its incident an alert stands."""

    OPENED = "opened"
    ESCALATED = "escalated"
    REPEATED = "repeated"
    RESOLVED = "resolved"


@record
class Alert:
    """One message about one incident, as channels send it and as actions are given it.

    Attributes:
        kind: opened, escalated, repeated or resolved.
        level: how serious it is; of a resolved one, how serious it was when it was last told.
        about: `"memory"`, `"reclaim"`, `"budget"` or `"task"`.
        name: the owner or task that it is about, cut and free of control characters; empty for the whole process.
        summary: what happened, in one line.
        details: more, as (label, text).
        swallowed: how often the same was seen since the last message, and not told.
        lost: messages to this channel that were dropped since the last that was delivered.
        incident: the same for all messages of one incident to one receiver.
        number: 1 for the first message of the incident to this receiver, and so on.
        source: the service, its host and process.
        at: when it was told, in seconds since the epoch.
    """

    kind: AlertKind
    level: Level
    about: str
    name: str
    summary: str
    details: tuple[tuple[str, str], ...]
    swallowed: int
    lost: int
    incident: str
    number: int
    source: str
    at: float
