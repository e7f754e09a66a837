"""Channels reject invalid arguments, hide their secrets, and interpret answers."""

import http.client
import logging
import pickle
import socket
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memtools.alerts import (
    Alert,
    AlertKind,
    AlertRule,
    Alerts,
    AppriseChannel,
    Deadline,
    EmailChannel,
    LogChannel,
    SlackChannel,
    WebhookChannel,
)
from memtools.alerts._protocol import as_delivery_failure
from memtools.alerts._rules import Secret
from memtools.alerts._transport import retry_after_s
from memtools.errors import ConfigError, DeliveryFailed
from memtools.readings import Level

PROGRAM = Path(__file__).parent / "programs" / "import_clients.py"
SECRET = "T0K3N"


def mail(**changes: object) -> EmailChannel:
    arguments: dict[str, object] = {"host": "localhost", "sender": "a@example.org", "recipients": "b@example.org"}
    return EmailChannel(**{**arguments, **changes})  # type: ignore[arg-type]  # invalid ones are the point


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://example.org/{SECRET}", f"https:/example.org/{SECRET}", f"example.org/{SECRET}", f"https:///{SECRET}",
        f"https://example.org/{SECRET}\r\nX: y", f"https://example.org/ {SECRET}", f"https://exämple.org/{SECRET}",
        f"file:///etc/{SECRET}", f"https://user:{SECRET}@example.org/", "https://", "", None, 7,
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [SlackChannel, WebhookChannel])
def test_url_that_is_not_http_is_rejected_and_hidden(kind: Callable[[object], object], url: object) -> None:
    with pytest.raises(ConfigError, match="url=<hidden>") as caught:
        kind(url)

    assert SECRET not in f"{caught.value!s}{caught.value!r}{caught.value.args}"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "a\r\nb"}, "host"),
        ({"host": "http://a"}, "host"),
        ({"port": 0}, "port"),
        ({"port": "587"}, "port"),
        ({"sender": "operator"}, "sender"),
        ({"sender": "a@example.org\r\nBcc: c@example.org"}, "sender"),
        ({"recipients": ()}, "recipients"),
        ({"recipients": ["b@example.org", "b, c@example.org"]}, "recipients"),
        ({"username": "me"}, "username"),
        ({"password": SECRET}, "username"),
        ({"username": "me", "password": ""}, "password"),
        ({"username": "me", "password": SECRET, "security": "none"}, "security"),
        ({"security": "ssl"}, "security"),
    ],
)
def test_mail_channel_rejects_invalid_arguments(changes: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mail(**changes)

    assert caught.value.name == name
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "EmailChannel(localhost:587, starttls, 1 recipients)"),
        ({"port": 465}, "EmailChannel(localhost:465, tls, 1 recipients)"),
        ({"security": "tls"}, "EmailChannel(localhost:465, tls, 1 recipients)"),
        ({"port": 2525}, "EmailChannel(localhost:2525, starttls, 1 recipients)"),
        ({"port": 587, "security": "tls"}, "EmailChannel(localhost:587, tls, 1 recipients)"),
        ({"security": "none"}, "EmailChannel(localhost:587, none, 1 recipients)"),
    ],
)
def test_mail_security_follows_the_port_unless_given(changes: dict[str, object], shown: str) -> None:
    assert repr(mail(**changes)) == shown


@pytest.mark.parametrize("security", ["starttls", "none"])
def test_port_465_is_rejected_without_tls_from_the_start(security: str) -> None:
    with pytest.raises(ConfigError, match="'tls' on port 465") as caught:
        mail(port=465, security=security)

    assert caught.value.name == "security"


@pytest.mark.parametrize(
    "headers",
    [{"X": f"{SECRET}\r\nY: z"}, {"X Y": SECRET}, {"": SECRET}, {"X": 7}, [("X", SECRET)], {"X": "é" + SECRET}],
)
def test_headers_that_break_a_request_are_rejected_and_hidden(headers: object) -> None:
    with pytest.raises(ConfigError, match="headers=<hidden>") as caught:
        WebhookChannel("https://example.org", headers=headers)  # type: ignore[arg-type]  # the point of the test

    assert SECRET not in str(caught.value)


def test_channel_repr_hides_its_secrets() -> None:
    channels = [
        SlackChannel(f"https://example.org/{SECRET}"),
        WebhookChannel(f"https://example.org/{SECRET}", headers={"Authorization": SECRET}),
        mail(username="me", password=SECRET),
        AppriseChannel(f"json://example.org/{SECRET}"),
        LogChannel(),
    ]

    assert SECRET not in "".join(f"{channel!r}{channel!s}{vars(channel)}" for channel in channels)


def test_secret_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(SECRET))


@pytest.mark.parametrize("value", [None, "", 7])
def test_apprise_channel_rejects_a_missing_url(value: object) -> None:
    with pytest.raises(ConfigError, match="url="):
        AppriseChannel(value)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
        (None, None), ("", None), ("soon", None), ("-5", None), ("1e9", None), ("9" * 400, None), ("²", None),
        ("Wed, 99 Foo 99999999999 99:99:99 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(text: str | None, seconds: float | None) -> None:
    now = 1445412480.0 - 60.0  # a minute before the date above

    assert retry_after_s(text, now) == seconds


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(f"to {SECRET}"), "no answer in time"),
        (ConnectionRefusedError(111, f"to {SECRET}"), "ConnectionRefusedError (Connection refused)"),
        (urllib.error.URLError(ConnectionResetError(104, SECRET)), "ConnectionResetError (Connection reset by peer)"),
        (socket.gaierror(-2, f"{SECRET} not known"), "the name of the host cannot be resolved"),
        (http.client.InvalidURL(SECRET), "InvalidURL"),
        (ValueError(SECRET), "ValueError"),
        (MemoryError(), "MemoryError"),
        (OSError(SECRET), "OSError"),
        (ssl.SSLError(1, SECRET), "SSLError"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the words for error numbers are those of POSIX")
def test_foreign_error_is_kept_without_its_text(error: Exception, reason: str) -> None:
    failure = as_delivery_failure(error)

    assert str(failure) == reason
    assert failure.retry
    assert failure.__cause__ is None
    assert failure.__context__ is None


def test_delivery_failure_can_be_pickled() -> None:
    failure = pickle.loads(pickle.dumps(DeliveryFailed("HTTP 429", retry_after_s=5.0)))

    assert (str(failure), failure.retry, failure.retry_after_s) == ("HTTP 429", True, 5.0)


def test_log_channel_uses_the_severity_of_the_alert(alert: Alert, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for kind, level in [
        (AlertKind.OPENED, Level.WARNING),
        (AlertKind.ESCALATED, Level.CRITICAL),
        (AlertKind.RESOLVED, Level.CRITICAL),
    ]:
        LogChannel().send(replace(alert, kind=kind, level=level), Deadline(1.0))

    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("memtools.alerts", "WARNING"), ("memtools.alerts", "CRITICAL"), ("memtools.alerts", "INFO"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda rule, good: Alerts([]), "rules"),
        (lambda rule, good: Alerts([rule, "slack"]), "rules"),
        (lambda rule, good: Alerts(rule), "rules"),
        (lambda rule, good: Alerts([rule]), "notify"),
        (lambda rule, good: Alerts([rule], channels={"slack": object()}), "channels"),
        (lambda rule, good: Alerts([rule], channels={"a b": good}), "channels"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, monitor=7), "monitor"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, cooldown=-1), "cooldown"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, timeout=0), "timeout"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, action_timeout=0), "action_timeout"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, queue_size=0), "queue_size"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, drain=float("inf")), "drain"),
        (lambda rule, good: Alerts([rule], channels={"slack": good}, service=" "), "service"),
    ],
)
def test_alerts_reject_invalid_arguments(make: Callable[[AlertRule, LogChannel], object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(AlertRule("warning", notify="slack"), LogChannel())

    assert caught.value.name == name


def test_unknown_channel_name_error_lists_the_channels() -> None:
    with pytest.raises(ConfigError, match="'log', 'hook'"):
        Alerts([AlertRule("warning", notify="hooc")], channels={"hook": LogChannel()})


def test_clients_are_imported_at_the_start_and_not_later() -> None:
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines() == ["[]", "['smtplib', 'urllib.request']", "[True, True] []"]
