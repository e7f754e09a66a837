"""Put an alert into a mail: headers, plain text, HTML.

Leaves to others: sending it (`_smtp`).
"""

from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from html import escape
from typing import Final

from memtools.alerts._alert import Alert
from memtools.alerts._wording import lines_of, plain, subject_of, text_of

_SUBJECT_AT_MOST: Final = 200  # characters; more is cut by whoever shows it


def letter_of(alert: Alert, *, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """Return `alert` as a mail.

    All mails of one incident refer to the same first message, whether or not that one has arrived. One that is sent
    again has the same Message-ID, by which mail programs know it.
    """
    domain = sender.rpartition("@")[2]
    letter = EmailMessage(policy=SMTP)
    letter["Subject"] = plain(subject_of(alert), _SUBJECT_AT_MOST)
    letter["From"] = sender
    letter["To"] = ", ".join(recipients)
    letter["Date"] = formatdate(alert.at, usegmt=True)
    letter["Message-ID"] = _message_id(alert, alert.number, domain)
    if alert.number > 1:
        letter["In-Reply-To"] = letter["References"] = _message_id(alert, 1, domain)
    letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers by machines
    letter.set_content(text_of(alert))
    letter.add_alternative(_html(alert), subtype="html")
    return letter


def _message_id(alert: Alert, number: int, domain: str) -> str:
    return f"<memtools.{alert.incident}.{number}@{domain}>"


def _html(alert: Alert) -> str:
    lines = lines_of(alert)
    rows = "".join(f"<tr><th align=left>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in lines)
    return f"<html><body><p><b>{escape(subject_of(alert))}</b></p><table>{rows}</table></body></html>\n"
