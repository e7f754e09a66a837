"""Channels refuse what makes no sense, show no secret, and say what an answer means."""

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

import pytest

from memtools.alerts import (
    Alert,
    AlertKind,
    AlertRule,
    Alerts,
    AppriseChannel,
    Deadline,
    DeliveryFailed,
    EmailChannel,
    LogChannel,
    SlackChannel,
    WebhookChannel,
)
from memtools.alerts._delivery import as_delivery_failure
from memtools.alerts._rules import Secret
from memtools.alerts._transport import retry_after_s
from memtools.errors import ConfigError
from memtools.readings import Level

SECRET = "T0K3N"


def mail(**changes: object) -> EmailChannel:
    arguments: dict[str, object] = {"host": "localhost", "sender": "a@example.org", "recipients": "b@example.org"}
    return EmailChannel(**{**arguments, **changes})  # type: ignore[arg-type]  # wrong ones are the point


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://example.org/{SECRET}", f"https:/example.org/{SECRET}", f"example.org/{SECRET}", f"https:///{SECRET}",
        f"https://example.org/{SECRET}\r\nX: y", f"https://example.org/ {SECRET}", f"https://exämple.org/{SECRET}",
        f"file:///etc/{SECRET}", f"https://user:{SECRET}@example.org/", "https://", "", None, 7,
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [SlackChannel, WebhookChannel])
def test_what_is_no_http_address_is_refused_unseen(kind: Callable[[object], object], url: object) -> None:
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
        ({"sender": "nobody"}, "sender"),
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
def test_a_mail_channel_refuses_what_makes_no_sense(changes: dict[str, object], name: str) -> None:
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


def test_starttls_on_the_port_of_implicit_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tls' on port 465") as caught:
        mail(port=465, security="starttls")

    assert caught.value.name == "security"


@pytest.mark.parametrize(
    "headers",
    [{"X": f"{SECRET}\r\nY: z"}, {"X Y": SECRET}, {"": SECRET}, {"X": 7}, [("X", SECRET)], {"X": "é" + SECRET}],
)
def test_headers_that_would_break_a_request_are_refused_unseen(headers: object) -> None:
    with pytest.raises(ConfigError, match="headers=<hidden>") as caught:
        WebhookChannel("https://example.org", headers=headers)  # type: ignore[arg-type]  # the point of the test

    assert SECRET not in str(caught.value)


def test_no_channel_shows_its_secrets() -> None:
    channels = [
        SlackChannel(f"https://example.org/{SECRET}"),
        WebhookChannel(f"https://example.org/{SECRET}", headers={"Authorization": SECRET}),
        mail(username="me", password=SECRET),
        AppriseChannel(f"json://example.org/{SECRET}"),
        LogChannel(),
    ]

    assert SECRET not in "".join(f"{channel!r}{channel!s}{vars(channel)}" for channel in channels)


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(SECRET))


@pytest.mark.parametrize("value", [None, "", 7])
def test_apprise_wants_a_url(value: object) -> None:
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
def test_retry_after_is_read_in_both_its_forms(text: str | None, seconds: float | None) -> None:
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
def test_of_a_stranger_s_error_no_text_is_kept(error: Exception, reason: str) -> None:
    failure = as_delivery_failure(error)

    assert str(failure) == reason
    assert failure.retry
    assert failure.__cause__ is None
    assert failure.__context__ is None


def test_a_failure_of_a_channel_says_why_and_travels() -> None:
    failure = pickle.loads(pickle.dumps(DeliveryFailed("HTTP 429", retry_after_s=5.0)))

    assert (str(failure), failure.retry, failure.retry_after_s) == ("HTTP 429", True, 5.0)


def test_the_log_is_told_by_severity(alert: Alert, caplog: pytest.LogCaptureFixture) -> None:
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
def test_alerts_refuse_what_makes_no_sense(make: Callable[[AlertRule, LogChannel], object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(AlertRule("warning", notify="slack"), LogChannel())

    assert caught.value.name == name


def test_a_name_without_a_channel_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'log', 'hook'"):
        Alerts([AlertRule("warning", notify="hooc")], channels={"hook": LogChannel()})


def test_nothing_heavy_is_loaded_before_the_start_and_nothing_after() -> None:
    program = (
        "import sys\n"
        "import memtools\n"
        "from memtools.alerts import *\n"
        "heavy = ('smtplib', 'urllib.request', 'apprise')\n"
        "channels = {'hook': WebhookChannel('http://127.0.0.1:1/'),\n"
        "            'mail': EmailChannel('127.0.0.1', 1, sender='a@b.c', recipients='a@b.c', security='none')}\n"
        "alerts = Alerts([AlertRule('warning', notify=('hook', 'mail'))], channels=channels, drain=0.2)\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "with alerts:\n"
        "    print([name for name in heavy if name in sys.modules])\n"
        "    from memtools.events import TaskAbandoned, emit\n"
        "    loaded = set(sys.modules)\n"
        "    emit(TaskAbandoned('scope', 'task', 1.0))\n"
        "figures = alerts.statistics()\n"
        "print([channel.failures > 0 for channel in figures.channels], sorted(set(sys.modules) - loaded))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines() == ["[]", "['smtplib', 'urllib.request']", "[True, True] []"]
