"""Tell a Slack channel, by an incoming webhook.

Leaves to others: the request itself (`_posting`).
Source of the sizes: https://api.slack.com/reference/block-kit/blocks (section: 3,000 characters; header: 150; a field:
2,000; ten fields) and https://api.slack.com/methods/chat.postMessage (text: 4,000 as a rule).
"""

import json
from typing import Final

from memtools.alerts._alert import Alert, AlertKind
from memtools.alerts._deadline import Deadline
from memtools.alerts._posting import Posting
from memtools.alerts._wording import lines_of, slack_text, subject_of
from memtools.readings import Level

_SECTION_AT_MOST: Final = 3_000
_FIELD_AT_MOST: Final = 2_000
_FIELDS_AT_MOST: Final = 10
_SIGNS: Final = {Level.WARNING: ":warning:", Level.CRITICAL: ":rotating_light:"}


class SlackChannel:
    """Posts alerts to an incoming webhook of Slack, or of what speaks as it does (Mattermost, Rocket.Chat).

    Args:
        url: the address of the webhook; it lets anybody in, so it is never shown.
        cafile: a file of certificates to trust instead of those of the system.

    Raises:
        ConfigError: for what is no http or https URL.
    """

    def __init__(self, url: str, *, cafile: str | None = None) -> None:
        self._posting = Posting(url, cafile)

    def open(self) -> None:
        """Import the HTTP client and read the certificates."""
        self._posting.open()

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Post `alert`.

        Raises:
            DeliveryFailed: with what Slack answered, or why it did not.
        """
        body = json.dumps(message_of(alert)).encode("ascii")
        self._posting.post(body, {"Content-Type": "application/json; charset=utf-8"}, deadline)

    def close(self) -> None:
        """Let go of the HTTP client."""
        self._posting.close()

    def __repr__(self) -> str:
        return "SlackChannel(url=<hidden>)"


def message_of(alert: Alert) -> dict[str, object]:
    """Return `alert` as a message of Slack, escaped and cut; `text` is what notifications show."""
    title = slack_text(subject_of(alert), _SECTION_AT_MOST - 50)
    sign = ":white_check_mark:" if alert.kind is AlertKind.RESOLVED else _SIGNS[alert.level]
    fields = [
        {"type": "mrkdwn", "text": slack_text(f"*{label}*\n{text}", _FIELD_AT_MOST)} for label, text in lines_of(alert)
    ]
    section = {
        "type": "section",
        "text": {"type": "mrkdwn", "text": f"{sign} {title}"},
        "fields": fields[:_FIELDS_AT_MOST],
    }
    return {"text": title, "blocks": [section]}
