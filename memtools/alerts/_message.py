"""Put an alert into words, and a stranger's name into a form that harms nobody who reads it.

Covers: names cut and made visible, the subject line, the lines of the text, the markup of Slack.
Leaves to others: HTML and mail headers (`_letter`), JSON (`_webhook`).

Names of owners and tasks may come from requests: they may hold line ends, escapes, markup, or a megabyte.
"""

from enum import StrEnum
from typing import Final

from memtools._records import record
from memtools.readings import Level
from memtools.units import format_size

# What is told: one message about one incident.
#
# Leaves to others: when it is told (`_life`, `_board`), to whom (`_outbox`), in which form (the channels).


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


NAME_AT_MOST: Final = 200  # characters; as the accounts of the ledger
_TEXT_AT_MOST: Final = 1_000  # characters of a summary or of one detail

# The three characters that Slack asks to be escaped; `<` begins its mentions and links.
_SLACK_MARKS: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(name: str, at_most: int = NAME_AT_MOST) -> str:
    """Return `name` on one line of at most `at_most` characters, with nothing in it that is not printed."""
    # Cut first: what is a megabyte long is not looked through.
    shown = name[: at_most + 1]
    if not shown.isprintable():
        shown = "".join(map(_shown, shown))
    return shown if len(shown) <= at_most else f"{shown[: at_most - 1]}…"


def subject_of(alert: Alert) -> str:
    """Return the alert in one line, for a subject or a notification."""
    word = alert.kind.value if alert.kind is not AlertKind.OPENED else alert.level.name.lower()
    return plain(f"[{word}] {alert.source}: {alert.summary}", _TEXT_AT_MOST)


def lines_of(alert: Alert) -> tuple[tuple[str, str], ...]:
    """Return what is known besides the summary, as (label, text)."""
    lines = [("level", alert.level.name.lower()), *alert.details]
    if alert.suppressed:
        lines.append(("seen again", f"{alert.suppressed:,} times since the last message"))
    if alert.dropped:
        lines.append(("lost before", f"{alert.dropped:,} earlier messages could not be delivered here"))
    lines.append(("incident", f"{alert.incident}, message {alert.number}"))
    return tuple((label, plain(text, _TEXT_AT_MOST)) for label, text in lines)


def text_of(alert: Alert) -> str:
    """Return the alert as text of several lines."""
    return "\n".join([subject_of(alert), "", *(f"{label}: {text}" for label, text in lines_of(alert))])


def slack_text(text: str, at_most: int) -> str:
    """Return `text` escaped for Slack, in at most `at_most` characters; no escape is cut in two."""
    parts: list[str] = []
    room = at_most - 1
    for character in text:
        part = _SLACK_MARKS.get(character, character)
        if len(part) > room:
            return "".join(parts) + "…"
        parts.append(part)
        room -= len(part)
    return "".join(parts)


def largest_in_words(largest: tuple[tuple[str, int], ...]) -> str:
    """Return owners and their sizes in words."""
    return ", ".join(f"{plain(name)} {format_size(size)}" for name, size in largest)


def _shown(character: str) -> str:
    # Controls (line ends, escapes), bidirectional marks, surrogates, blanks that are none.
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
