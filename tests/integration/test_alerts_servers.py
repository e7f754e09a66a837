"""Delivery to real servers: HTTP, and SMTP with STARTTLS and AUTH, and what happens when they fail."""

import asyncio
import email
import email.policy
import http.server
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from memtools.alerts import AlertRule, Alerts, ChannelStatistics, EmailChannel, SlackChannel, WebhookChannel
from memtools.cleanup import Reclaimer
from memtools.events import BudgetOverrun, LevelChanged, emit
from memtools.monitor import MemoryMonitor, MemorySource
from memtools.readings import Headroom, Level, Limit, LimitSource, Reading

MIB = 2**20
USERNAME, PASSWORD = "alerts", "open-sesame-7531"
TOKEN = "T0K3N-2468"
TIMEOUT_S = 20.0


class HttpServer:
    """An HTTP server that records what is posted and gives scripted answers."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.attempts: list[float] = []
        self.answers: list[Callable[[http.server.BaseHTTPRequestHandler], None]] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(self))
        self.server.daemon_threads = False
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.server.server_port}/services/{TOKEN}"

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def handler_for(http_server: HttpServer) -> type[http.server.BaseHTTPRequestHandler]:
    """Return the request handler of the server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            http_server.attempts.append(time.monotonic())
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if http_server.answers:
                http_server.answers.pop(0)(self)
                return
            http_server.bodies.append(json.loads(body))
            http_server.headers.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def status(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """An answer with a status and headers."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    """An answer that never ends, a byte at a time: a timeout for each read would never notice."""
    try:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        for _ in range(400):
            handler.wfile.write(b"x")
            time.sleep(0.02)
    except OSError:
        return  # the client has closed the connection, as it should


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


class SmtpServer:
    """An SMTP server that asks for STARTTLS and AUTH, and records the mails."""

    def __init__(self, context: ssl.SSLContext, *, offers_tls: bool = True) -> None:
        self.mails: list[EmailMessage] = []
        self.refusals: list[str] = []
        self._context = context if offers_tls else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert session.authenticated
        assert session.ssl is not None
        if self.refusals:
            return self.refusals.pop(0)
        content = envelope.content
        assert isinstance(content, bytes)
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 taken"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        secured = self._context is not None
        return await self._loop.create_server(
            lambda: SMTP(
                self,
                hostname="localhost",
                tls_context=self._context,
                require_starttls=secured,
                auth_required=secured,
                auth_require_tls=True,
                authenticator=self._authenticate,
            ),
            "127.0.0.1",
            0,
        )

    async def _close(self) -> None:
        self._server.close()
        for _ in range(100):
            if len(asyncio.all_tasks()) <= 1:
                return
            await asyncio.sleep(0.01)

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: object
    ) -> AuthResult:
        known = isinstance(login, LoginPassword) and login == LoginPassword(USERNAME.encode(), PASSWORD.encode())
        return AuthResult(success=known, handled=False)


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """A real HTTP server."""
    http_server = HttpServer()
    yield http_server
    http_server.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """The certificate of an authority as a file, and a server's context with a certificate for localhost by it."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return path, context


@pytest.fixture
def smtp_server(authority: tuple[Path, ssl.SSLContext]) -> Iterator[SmtpServer]:
    """A real SMTP server with STARTTLS and AUTH."""
    smtp_server = SmtpServer(authority[1])
    yield smtp_server
    smtp_server.close()


@pytest.fixture
def email_channel(smtp_server: SmtpServer, authority: tuple[Path, ssl.SSLContext]) -> EmailChannel:
    """A channel to that server."""
    return mail_to(smtp_server, authority[0])


def mail_to(smtp_server: SmtpServer, cafile: Path | None, **changes: str) -> EmailChannel:
    return EmailChannel(
        changes.get("host", "localhost"),
        smtp_server.port,
        sender="memtools@example.org",
        recipients=("ops@example.org", "night@example.org"),
        username=USERNAME,
        password=changes.get("password", PASSWORD),
        cafile=None if cafile is None else str(cafile),
        security=changes.get("security"),
    )


def level(after: Level, before: Level = Level.NORMAL) -> LevelChanged:
    return LevelChanged(before, after, Reading(900 * MIB, 1024 * MIB, time.monotonic()), 800 * MIB)


def of(alerts: Alerts, name: str) -> ChannelStatistics:
    return next(channel for channel in alerts.statistics().channels if channel.name == name)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def test_501_warnings_and_2_returns_are_4_posts_and_4_mails(
    http_server: HttpServer, smtp_server: SmtpServer, email_channel: EmailChannel
) -> None:
    rule = AlertRule("warning", notify=("slack", "email"))

    with Alerts([rule], channels={"slack": SlackChannel(http_server.url()), "email": email_channel}, drain=TIMEOUT_S):
        for _ in range(500):
            emit(level(Level.WARNING))
        emit(level(Level.NORMAL, Level.WARNING))
        emit(level(Level.WARNING))
        emit(level(Level.NORMAL, Level.WARNING))

    assert len(http_server.bodies) == 4
    assert len(smtp_server.mails) == 4
    assert all(body["text"] for body in http_server.bodies)
    assert "499 times since the last message" in json.dumps(http_server.bodies[1])
    kinds = [mail["Subject"].split()[0].strip("[]") for mail in smtp_server.mails]
    assert kinds == ["warning", "resolved", "warning", "resolved"]


def test_monitor_with_501_high_readings_sends_4_posts_4_mails(
    http_server: HttpServer, smtp_server: SmtpServer, email_channel: EmailChannel
) -> None:
    used, now = [100 * MIB], [0.0]
    source = MemorySource(
        used=lambda: used[0],
        limit=lambda: Limit(1024 * MIB, LimitSource.USER),
        headroom=lambda: Headroom(None, LimitSource.UNKNOWN, (), None),
        clock=lambda: now[0],
    )
    reclaimer = Reclaimer([], read=source.used)
    monitor = MemoryMonitor("60%", "80%", source=source, reclaimer=reclaimer, pressure=False, cleanup_interval=0)

    def sample(used_mib: int, times: int) -> None:
        for _ in range(times):
            now[0] += 0.1
            used[0] = used_mib * MIB
            monitor.check()

    rule = AlertRule("warning", notify=("slack", "email"), categories="memory")
    channels = {"slack": SlackChannel(http_server.url()), "email": email_channel}
    with Alerts([rule], channels=channels, monitor=monitor, drain=TIMEOUT_S) as alerts:
        sample(700, 501)  # the first waits for a confirmation, the second changes the level, the rest repeats it
        sample(100, 110)  # 11 s at a normal level
        sample(700, 2)
        sample(100, 210)

    assert monitor.statistics().level_changes == {Level.NORMAL: 2, Level.WARNING: 2, Level.CRITICAL: 0}
    assert len(http_server.bodies) == len(smtp_server.mails) == 4
    assert "times since the last message" in json.dumps(http_server.bodies[1])
    kinds = [mail["Subject"].split()[0].strip("[]") for mail in smtp_server.mails]
    assert kinds == ["warning", "resolved", "warning", "resolved"]
    assert (of(alerts, "slack").lost, of(alerts, "email").lost) == (0, 0)


def test_mails_of_one_incident_make_one_thread(smtp_server: SmtpServer, email_channel: EmailChannel) -> None:
    rules = [AlertRule("warning", notify="email"), AlertRule("critical", notify="email")]

    with Alerts(rules, channels={"email": email_channel}, drain=TIMEOUT_S):
        emit(level(Level.WARNING))
        emit(level(Level.CRITICAL, Level.WARNING))
        emit(level(Level.NORMAL, Level.CRITICAL))
        emit(level(Level.WARNING))

    first, second, third, other = smtp_server.mails
    assert first["References"] is None
    assert second["References"] == third["References"] == first["Message-ID"]
    assert second["In-Reply-To"] == first["Message-ID"]
    assert other["Message-ID"] not in {first["Message-ID"], second["Message-ID"], third["Message-ID"]}
    assert other["References"] is None


def test_hostile_name_breaks_no_header_no_markup_and_no_json(
    http_server: HttpServer, smtp_server: SmtpServer, email_channel: EmailChannel
) -> None:
    name = "report\r\nBcc: thief@example.org\r\n\r\n<script>alert(1)</script><!channel>&\u202e\x1b[31m" + "x" * 10**6
    rule = AlertRule("warning", notify=("slack", "email", "hook"))
    channels = {
        "slack": SlackChannel(http_server.url()),
        "hook": WebhookChannel(http_server.url()),
        "email": email_channel,
    }

    with Alerts([rule], channels=channels, drain=TIMEOUT_S):
        emit(BudgetOverrun(name, "call", 2 * MIB, MIB, "peak", in_flight=False))

    (mail,) = smtp_server.mails
    assert mail["Bcc"] is None
    assert mail["To"] == "ops@example.org, night@example.org"
    html = mail.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()
    assert "&lt;script&gt;" in html.get_content()
    slack = next(json.dumps(body) for body in http_server.bodies if "blocks" in body)
    assert "<!channel>" not in slack
    assert "&lt;!channel&gt;&amp;" in slack
    assert all(len(json.dumps(body)) < 3_000 for body in http_server.bodies)
    assert not [body for body in http_server.bodies if "\x1b" in str(body) or "\u202e" in str(body)]


def test_retry_after_of_a_429_is_honoured(http_server: HttpServer) -> None:
    http_server.answers = [status(429, Retry_After="1")]

    with Alerts(
        [AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(http_server.url())}, retry_first=0.01
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(http_server.bodies) == 1)

    assert http_server.attempts[1] - http_server.attempts[0] >= 0.99
    assert (of(alerts, "hook").delivered, of(alerts, "hook").failures, of(alerts, "hook").lost) == (1, 1, 0)


def test_server_errors_are_tried_again_until_delivery(http_server: HttpServer) -> None:
    http_server.answers = [status(500), status(503), hang_up, status(502)]

    with Alerts(
        [AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(http_server.url())}, retry_first=0.01
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(http_server.bodies) == 1)

    assert (of(alerts, "hook").failures, of(alerts, "hook").lost) == (4, 0)
    assert http_server.headers[0]["Idempotency-Key"] == f"{http_server.bodies[0]['incident']}-1"


def test_server_that_drips_is_given_up_in_time_and_tried_again(http_server: HttpServer) -> None:
    http_server.answers = [drip]

    with Alerts(
        [AlertRule("warning", notify="hook")],
        channels={"hook": WebhookChannel(http_server.url())},
        retry_first=0.01,
        timeout=0.3,
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(http_server.bodies) == 1)

    assert http_server.attempts[1] - http_server.attempts[0] < 3.0
    assert (of(alerts, "hook").failures, of(alerts, "hook").lost) == (1, 0)


def test_server_that_never_answers_delays_no_other_channel(http_server: HttpServer) -> None:
    rule = AlertRule("warning", notify=("silent", "hook", "mail"))
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted, and nothing is ever read
        port = silent.getsockname()[1]
        channels = {
            "silent": WebhookChannel(f"http://127.0.0.1:{port}/{TOKEN}"),
            "mail": EmailChannel("127.0.0.1", port, sender="a@example.org", recipients="b@example.org"),
            "hook": WebhookChannel(http_server.url()),
        }
        with Alerts([rule], channels=channels, timeout=60, drain=0.1) as alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: of(alerts, "hook").delivered == 1)

    assert time.monotonic() - begun < 15
    assert (of(alerts, "silent").left, of(alerts, "mail").left) == (1, 1)


def test_silent_servers_are_given_up_by_the_socket_timeout(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        channels = {
            "hook": WebhookChannel(f"http://127.0.0.1:{port}/{TOKEN}"),
            "mail": EmailChannel("127.0.0.1", port, sender="a@example.org", recipients="b@example.org"),
        }
        with Alerts([AlertRule("warning", notify=tuple(channels))], channels=channels, timeout=0.3, drain=0) as alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: all(channel.failures for channel in alerts.statistics().channels))

    assert (of(alerts, "hook").abandoned, of(alerts, "mail").abandoned) == (0, 0)
    assert caplog.text.count("do not arrive: no answer in time;") == 2


class ImplicitTlsServer:
    """An SMTP server that takes TLS from the first byte."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.subjects: list[str] = []
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with self._context.wrap_socket(connection, server_side=True) as secure, secure.makefile("rwb") as stream:

            def send(line: bytes) -> None:
                stream.write(line + b"\r\n")
                stream.flush()

            send(b"220 localhost")
            for line in stream:
                if line.upper().startswith(b"DATA"):
                    send(b"354 go on")
                    lines = list(iter(stream.readline, b".\r\n"))
                    self.subjects.append(email.message_from_bytes(b"".join(lines))["Subject"])
                send(b"221 bye" if line.upper().startswith(b"QUIT") else b"250 ok")


def test_mail_is_sent_by_tls_from_the_first_byte(authority: tuple[Path, ssl.SSLContext]) -> None:
    server = ImplicitTlsServer(authority[1])
    channel = EmailChannel(
        "localhost",
        server.port,
        sender="memtools@example.org",
        recipients="ops@example.org",
        security="tls",
        cafile=str(authority[0]),
    )

    with Alerts([AlertRule("warning", notify="mail")], channels={"mail": channel}, drain=TIMEOUT_S) as alerts:
        emit(level(Level.WARNING))
    server.close()

    assert of(alerts, "mail").delivered == 1
    assert len(server.subjects) == 1
    assert server.subjects[0].split()[0] == "[warning]"  # a long host name folds the line


def test_dead_endpoint_delays_no_other_and_losses_are_logged(
    http_server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    dead = WebhookChannel(f"http://127.0.0.1:{port}/{TOKEN}")
    rule = AlertRule("warning", notify=("dead", "hook"))

    with Alerts(
        [rule],
        channels={"dead": dead, "hook": WebhookChannel(http_server.url())},
        queue_size=5,
        retry_first=0.01,
        drain=0.2,
    ) as alerts:
        for number in range(20):
            emit(BudgetOverrun(f"owner {number}", "call", 2 * MIB, MIB, "peak", in_flight=False))
        wait_until(lambda: of(alerts, "hook").delivered + of(alerts, "hook").dropped == 20)
        wait_until(lambda: of(alerts, "dead").dropped >= 14)

    figures = of(alerts, "dead")
    assert figures.lost == 20
    assert figures.dropped + figures.left == 20
    assert f"Alerts stopped with {figures.left} undelivered to dead" in caplog.text
    assert "Alerts to dead do not arrive: ConnectionRefusedError" in caplog.text
    assert len(http_server.bodies) == of(alerts, "hook").delivered


def test_next_message_states_what_was_dropped_before(http_server: HttpServer) -> None:
    http_server.answers = [status(500)] * 8
    rule = AlertRule("warning", notify="hook")

    with Alerts(
        [rule], channels={"hook": WebhookChannel(http_server.url())}, queue_size=2, retry_first=0.05, retry_max=0.05
    ) as alerts:
        for number in range(10):
            emit(BudgetOverrun(f"owner {number}", "call", 2 * MIB, MIB, "peak", in_flight=False))
        wait_until(lambda: of(alerts, "hook").waiting == 0 and of(alerts, "hook").delivered > 0)

    reported = sum(int(str(body["dropped"])) for body in http_server.bodies)
    assert reported == of(alerts, "hook").dropped > 0
    assert reported + len(http_server.bodies) == 10


def test_permanent_refusal_is_not_tried_again(http_server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    http_server.answers = [status(404)]

    with Alerts([AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(http_server.url())}) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "hook").refused == 1)
        emit(level(Level.NORMAL, Level.WARNING))

    assert len(http_server.attempts) == 2
    assert http_server.bodies[0]["dropped"] == 1
    assert "An alert to hook was refused and is dropped: HTTP 404" in caplog.text


def test_redirect_is_not_followed(http_server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    http_server.answers = [status(307, Location=http_server.url())]

    with Alerts([AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(http_server.url())}) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "hook").refused == 1)

    assert len(http_server.attempts) == 1
    assert "redirects are not followed" in caplog.text


def test_busy_mail_server_is_tried_again(smtp_server: SmtpServer, email_channel: EmailChannel) -> None:
    smtp_server.refusals = ["451 come back later"]

    with Alerts([AlertRule("warning", notify="email")], channels={"email": email_channel}, retry_first=0.01) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(smtp_server.mails) == 1)

    assert (of(alerts, "email").failures, of(alerts, "email").lost) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "trusted", "reason"),
    [
        ({"password": "wrong-password-99"}, True, "SMTPAuthenticationError 535"),
        ({}, False, "SSLCertVerificationError"),
        ({"host": "127.0.0.1"}, True, "SSLCertVerificationError"),
    ],
)
def test_untrusted_mail_server_gets_no_mail(
    smtp_server: SmtpServer,
    authority: tuple[Path, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, str],
    trusted: bool,
    reason: str,
) -> None:
    channel = mail_to(smtp_server, authority[0] if trusted else None, **changes)

    with Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, drain=0.1) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "email").failures == 1)

    assert smtp_server.mails == []
    assert reason in caplog.text


def test_mail_server_without_starttls_gets_no_password(
    authority: tuple[Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    smtp_server = SmtpServer(authority[1], offers_tls=False)
    try:
        channel = mail_to(smtp_server, authority[0])
        with Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, drain=0.1) as alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: of(alerts, "email").failures == 1)
    finally:
        smtp_server.close()

    assert smtp_server.mails == []
    assert "does not offer what is needed" in caplog.text


def test_mail_server_that_begins_in_the_clear_is_told_apart(
    smtp_server: SmtpServer, authority: tuple[Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    channel = mail_to(smtp_server, authority[0], security="tls")

    with Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, drain=0.1) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "email").failures == 1)

    assert "the server does not begin with TLS: is it security='starttls'?" in caplog.text


def test_mail_server_that_waits_for_tls_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a server of TLS: the client speaks first
        channel = EmailChannel(
            "127.0.0.1", silent.getsockname()[1], sender="memtools@example.org", recipients="ops@example.org"
        )
        alerts = Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, timeout=0.5, drain=0.1)
        with alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: of(alerts, "email").failures == 1)

    assert "the server does not greet: does it want security='tls'?" in caplog.text


def test_https_certificate_and_name_are_checked(
    http_server: HttpServer, authority: tuple[Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    path, context = authority
    http_server.server.socket = context.wrap_socket(http_server.server.socket, server_side=True)
    known = WebhookChannel(http_server.url("https", "localhost"), cafile=str(path))
    untrusted = WebhookChannel(http_server.url("https", "localhost"))
    misnamed = WebhookChannel(http_server.url("https", "127.0.0.1"), cafile=str(path))
    rule = AlertRule("warning", notify=("known", "untrusted", "misnamed"))

    with Alerts(
        [rule], channels={"known": known, "untrusted": untrusted, "misnamed": misnamed}, drain=0.1, service="prices"
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: sum(channel.failures for channel in alerts.statistics().channels) == 2)
        wait_until(lambda: of(alerts, "known").delivered == 1)

    assert str(http_server.bodies[0]["source"]).startswith("prices on ")
    assert caplog.text.count("SSLCertVerificationError") == 2


def test_secrets_are_never_logged_or_shown(
    smtp_server: SmtpServer,
    authority: tuple[Path, ssl.SSLContext],
    http_server: HttpServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.CRITICAL, "mail.log")  # the log of the server
    http_server.answers = [status(404), status(500), hang_up]
    channels = {
        "slack": SlackChannel(http_server.url()),
        "hook": WebhookChannel(http_server.url(), headers={"Authorization": f"Bearer {TOKEN}"}),
        "email": mail_to(smtp_server, authority[0], password="wrong-password-99"),
        "untrusted": mail_to(smtp_server, None, password=PASSWORD),
    }
    rules = [AlertRule("warning", notify=tuple(channels))]

    with Alerts(rules, channels=channels, drain=0.3, retry_first=0.01, timeout=1.0) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: all(channel.failures for channel in alerts.statistics().channels))
        shown = [repr(alerts), repr(alerts.statistics()), repr(rules), repr(channels)]

    everything = "\n".join([caplog.text, *shown, *(str(vars(record)) for record in caplog.records)])
    for secret in (TOKEN, PASSWORD, "wrong-password-99", USERNAME + "'"):
        assert secret not in everything
