"""Alerts and their texts.

A file of its own because rules, incidents, channels and clients all need it.

Names of owners and tasks may come from requests: they may hold line ends, escapes, markup, or a megabyte.
"""

from enum import StrEnum
from typing import Final

from memtools._records import record
from memtools._text import printable
from memtools.readings import Level
from memtools.units import format_size

MAX_NAME_LENGTH: Final = 200  # characters; as the accounts of the ledger
_MAX_TEXT_LENGTH: Final = 1_000  # characters of a summary or of one detail

# The three characters that Slack asks to be escaped; `<` begins its mentions and links.
_SLACK_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class AlertKind(StrEnum):
    """The change of its incident that an alert reports."""

    OPENED = "opened"
    ESCALATED = "escalated"
    REPEATED = "repeated"
    RESOLVED = "resolved"


@record
class Alert:
    """One message about one incident, as channels send it and as actions are given it.

    Attributes:
        kind: opened, escalated, repeated or resolved.
        level: how serious it is; of a resolved one, the level of the message before.
        category: `"memory"`, `"reclaim"`, `"budget"`, `"task"`, `"forecast"` or `"death"`.
        name: the owner or task that it is about, cut and free of control characters; empty for the whole process.
        summary: what happened, in one line.
        details: more, as (label, text).
        suppressed: how often the same was observed since the last message without another one.
        dropped: messages to this channel that were dropped since the last one that was delivered.
        incident: the same for all messages of one incident to one recipient.
        number: 1 for the first message of the incident to this recipient, and so on.
        source: the service, its host and process.
        at: when it was made, in seconds since the epoch.
    """

    kind: AlertKind
    level: Level
    category: str
    name: str
    summary: str
    details: tuple[tuple[str, str], ...]
    suppressed: int
    dropped: int
    incident: str
    number: int
    source: str
    at: float


def one_line(name: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return `name` on one line of at most `max_length` characters, all of them printable."""
    # Cut first: a name of a megabyte is not searched.
    shown = printable(name, max_length + 1)
    if not shown.isprintable():
        shown = "".join(character if character.isprintable() else " " for character in shown)  # spaces of other widths
    return shown if len(shown) <= max_length else f"{shown[: max_length - 1]}…"


def subject(alert: Alert) -> str:
    """Return the alert in one line, for a subject or a notification."""
    word = alert.kind.value if alert.kind is not AlertKind.OPENED else alert.level.name.lower()
    return one_line(f"[{word}] {alert.source}: {alert.summary}", _MAX_TEXT_LENGTH)


def detail_lines(alert: Alert) -> tuple[tuple[str, str], ...]:
    """Return the level, the details and the counts, as (label, text)."""
    lines = [("level", alert.level.name.lower()), *alert.details]
    if alert.suppressed:
        lines.append(("seen again", f"{alert.suppressed:,} times since the last message"))
    if alert.dropped:
        lines.append(("lost before", f"{alert.dropped:,} earlier messages could not be delivered here"))
    lines.append(("incident", f"{alert.incident}, message {alert.number}"))
    return tuple((label, one_line(text, _MAX_TEXT_LENGTH)) for label, text in lines)


def text(alert: Alert) -> str:
    """Return the alert as text of several lines."""
    return "\n".join([subject(alert), "", *(f"{label}: {text}" for label, text in detail_lines(alert))])


def slack_text(text: str, max_length: int) -> str:
    """Return `text` escaped for Slack, in at most `max_length` characters; no escape is cut in two."""
    parts: list[str] = []
    left = max_length - 1
    for character in text:
        part = _SLACK_ESCAPES.get(character, character)
        if len(part) > left:
            return "".join(parts) + "…"
        parts.append(part)
        left -= len(part)
    return "".join(parts)


def format_owners(largest: tuple[tuple[str, int], ...]) -> str:
    """Return the owners with their sizes, as text."""
    return ", ".join(f"{one_line(name)} {format_size(size)}" for name, size in largest)
