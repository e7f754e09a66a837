"""Texts of alerts: a name stays text, on one line and short, whatever characters it holds."""

import json
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts import Alert, AlertKind
from memtools.alerts._channels import slack_message, webhook_body
from memtools.alerts._incidents import observations
from memtools.alerts._message import detail_lines, one_line, slack_text, subject, text
from memtools.alerts._transport import email_message
from memtools.events import BudgetOverrun, TaskAbandoned
from memtools.readings import Level

ANY_TEXT = st.text(st.characters(), max_size=400)  # surrogates, controls and all
EXAMPLE = Alert(AlertKind.OPENED, Level.WARNING, "budget", "report", "report is over", (), 0, 0, "t-1", 1, "here", 0.0)


def test_alert_text_is_plain_english(alert: Alert) -> None:
    again = replace(alert, kind=AlertKind.REPEATED, suppressed=1234, dropped=2)

    assert subject(alert) == "[critical] prices on host-1 (process 7): memory is at 900.0 MiB"
    assert subject(again).startswith("[repeated] prices")
    assert detail_lines(again) == (
        ("level", "critical"),
        ("change", "normal to critical"),
        ("seen again", "1,234 times since the last message"),
        ("lost before", "2 earlier messages could not be delivered here"),
        ("incident", "a1b2-1, message 1"),
    )
    assert text(alert).splitlines()[:2] == [subject(alert), ""]


@given(ANY_TEXT, st.integers(1, 300))
def test_one_line_is_printable_and_short(name: str, max_length: int) -> None:
    shown = one_line(name, max_length)

    assert shown.isprintable()
    assert len(shown) <= max_length
    if name.isascii() and name.isprintable() and len(name) <= max_length:
        assert shown == name


@given(ANY_TEXT, st.integers(1, 300))
def test_slack_text_is_escaped_and_not_cut_within_an_escape(text: str, max_length: int) -> None:
    shown = slack_text(text, max_length)

    assert len(shown) <= max_length
    assert not set(shown) & set("<>")
    assert text.startswith(unescape(shown.removesuffix("…"))) or "&" in text


def test_slack_escapes_are_kept_whole() -> None:
    assert slack_text("<" * 10, 10) == "&lt;&lt;…"
    assert slack_text("a<b>&c", 100) == "a&lt;b&gt;&amp;c"


@given(ANY_TEXT)
def test_slack_message_keeps_the_limits_of_slack(text: str) -> None:
    alert = replace(EXAMPLE, summary=text * 30, details=tuple((f"label {n}", text * 30) for n in range(20)))

    message = slack_message(alert)

    assert message["text"]
    (section,) = message["blocks"]  # type: ignore[misc]  # a list, as JSON has it
    assert len(section["text"]["text"]) <= 3_000  # type: ignore[index]
    assert len(section["fields"]) <= 10  # type: ignore[index]
    assert all(len(field["text"]) <= 2_000 for field in section["fields"])  # type: ignore[index]
    assert "<!" not in json.dumps(message)


@given(ANY_TEXT)
def test_mail_has_exactly_the_expected_headers(text: str) -> None:
    alert = replace(EXAMPLE, summary=one_line(text), source=one_line(text), details=(("owner", text),))

    message = email_message(alert, sender="a@example.org", recipients=("b@example.org", "c@example.org"))
    sent = message_from_bytes(message.as_bytes(), policy=default)

    assert sorted(set(sent.keys())) == [
        "Auto-Submitted", "Content-Type", "Date", "From", "MIME-Version", "Message-ID", "Subject", "To",
    ]  # fmt: skip
    assert sent["To"] == "b@example.org, c@example.org"


@given(ANY_TEXT)
def test_webhook_body_is_json_for_any_name(text: str) -> None:
    body = json.loads(webhook_body(replace(EXAMPLE, name=text, level=Level.CRITICAL, details=(("largest", "a"),))))

    assert (body["name"], body["level"], body["kind"]) == (text, "critical", "opened")
    assert body["details"] == {"largest": "a"}


@given(ANY_TEXT)
def test_names_are_made_printable_in_observations(text: str) -> None:
    events = BudgetOverrun(text * 10, "call", 2, 1, "peak", in_flight=True), TaskAbandoned(text, text, 1.0)

    for event in events:
        (observation,) = observations(event)
        assert observation.name.isprintable()
        summary, _ = observation.describe()
        assert summary.isprintable()
        assert len(summary) < 600
