"""Alerts reach real servers: HTTP, and SMTP with STARTTLS and AUTH; what goes wrong on the way loses nothing unsaid."""

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
PATIENCE_S = 20.0


class PostOffice:
    """An HTTP server that keeps what is posted and answers as it is told."""

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


def handler_for(office: PostOffice) -> type[http.server.BaseHTTPRequestHandler]:
    """What the server does with each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            office.attempts.append(time.monotonic())
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if office.answers:
                office.answers.pop(0)(self)
                return
            office.bodies.append(json.loads(body))
            office.headers.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def status(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """An answer that refuses."""

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
        return  # the client has gone, as it should


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


class Letterbox:
    """What an SMTP server that asks for STARTTLS and AUTH has taken."""

    def __init__(self, context: ssl.SSLContext, *, offers_tls: bool = True) -> None:
        self.letters: list[EmailMessage] = []
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
        letter = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
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
def office() -> Iterator[PostOffice]:
    """A real HTTP server."""
    office = PostOffice()
    yield office
    office.close()


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
def letterbox(authority: tuple[Path, ssl.SSLContext]) -> Iterator[Letterbox]:
    """A real SMTP server with STARTTLS and AUTH."""
    letterbox = Letterbox(authority[1])
    yield letterbox
    letterbox.close()


@pytest.fixture
def mail(letterbox: Letterbox, authority: tuple[Path, ssl.SSLContext]) -> EmailChannel:
    """A channel to that server."""
    return mail_to(letterbox, authority[0])


def mail_to(letterbox: Letterbox, cafile: Path | None, **changes: str) -> EmailChannel:
    return EmailChannel(
        changes.get("host", "localhost"),
        letterbox.port,
        sender="memtools@example.org",
        recipients=("ops@example.org", "night@example.org"),
        username=USERNAME,
        password=changes.get("password", PASSWORD),
        cafile=None if cafile is None else str(cafile),
    )


def level(after: Level, before: Level = Level.NORMAL) -> LevelChanged:
    return LevelChanged(before, after, Reading(900 * MIB, 1024 * MIB, time.monotonic()), 800 * MIB)


def of(alerts: Alerts, name: str) -> ChannelStatistics:
    return next(channel for channel in alerts.statistics().channels if channel.name == name)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def test_501_fires_and_2_resolves_are_4_posts_and_4_mails(
    office: PostOffice, letterbox: Letterbox, mail: EmailChannel
) -> None:
    rule = AlertRule("warning", notify=("slack", "email"))

    with Alerts([rule], channels={"slack": SlackChannel(office.url()), "email": mail}, drain=PATIENCE_S):
        for _ in range(500):
            emit(level(Level.WARNING))
        emit(level(Level.NORMAL, Level.WARNING))
        emit(level(Level.WARNING))
        emit(level(Level.NORMAL, Level.WARNING))

    assert len(office.bodies) == 4
    assert len(letterbox.letters) == 4
    assert all(body["text"] for body in office.bodies)
    assert "499 times since the last message" in json.dumps(office.bodies[1])
    kinds = [letter["Subject"].split("]")[0].lstrip("[") for letter in letterbox.letters]
    assert kinds == ["warning", "resolved", "warning", "resolved"]


def test_a_real_monitor_with_501_high_readings_and_2_returns_makes_4_posts_and_4_mails(
    office: PostOffice, letterbox: Letterbox, mail: EmailChannel
) -> None:
    used, now = [100 * MIB], [0.0]
    gauges = MemorySource(
        used=lambda: used[0],
        limit=lambda: Limit(1024 * MIB, LimitSource.USER),
        headroom=lambda: Headroom(None, LimitSource.UNKNOWN, (), None),
        clock=lambda: now[0],
    )
    ladder = Reclaimer([], read=gauges.used)
    monitor = MemoryMonitor("60%", "80%", gauges=gauges, ladder=ladder, pressure=False, cleanup_interval=0)

    def look(used_mib: int, times: int) -> None:
        for _ in range(times):
            now[0] += 0.1
            used[0] = used_mib * MIB
            monitor.check()

    rule = AlertRule("warning", notify=("slack", "email"), categories="memory")
    channels = {"slack": SlackChannel(office.url()), "email": mail}
    with Alerts([rule], channels=channels, monitor=monitor, drain=PATIENCE_S) as alerts:
        look(700, 501)  # the first is not believed yet, the second changes the level, the others repeat it
        look(100, 110)  # 11 s of calm
        look(700, 2)
        look(100, 210)

    assert monitor.statistics().level_changes == {Level.NORMAL: 2, Level.WARNING: 2, Level.CRITICAL: 0}
    assert len(office.bodies) == len(letterbox.letters) == 4
    assert "times since the last message" in json.dumps(office.bodies[1])
    kinds = [letter["Subject"].split("]")[0].lstrip("[") for letter in letterbox.letters]
    assert kinds == ["warning", "resolved", "warning", "resolved"]
    assert (of(alerts, "slack").lost, of(alerts, "email").lost) == (0, 0)


def test_the_mails_of_one_incident_make_one_thread(letterbox: Letterbox, mail: EmailChannel) -> None:
    rules = [AlertRule("warning", notify="email"), AlertRule("critical", notify="email")]

    with Alerts(rules, channels={"email": mail}, drain=PATIENCE_S):
        emit(level(Level.WARNING))
        emit(level(Level.CRITICAL, Level.WARNING))
        emit(level(Level.NORMAL, Level.CRITICAL))
        emit(level(Level.WARNING))

    first, second, third, other = letterbox.letters
    assert first["References"] is None
    assert second["References"] == third["References"] == first["Message-ID"]
    assert second["In-Reply-To"] == first["Message-ID"]
    assert other["Message-ID"] not in {first["Message-ID"], second["Message-ID"], third["Message-ID"]}
    assert other["References"] is None


def test_a_hostile_name_breaks_no_header_no_markup_and_no_json(
    office: PostOffice, letterbox: Letterbox, mail: EmailChannel
) -> None:
    name = "report\r\nBcc: thief@example.org\r\n\r\n<script>alert(1)</script><!channel>&\u202e\x1b[31m" + "x" * 10**6
    rule = AlertRule("warning", notify=("slack", "email", "hook"))
    channels = {"slack": SlackChannel(office.url()), "hook": WebhookChannel(office.url()), "email": mail}

    with Alerts([rule], channels=channels, drain=PATIENCE_S):
        emit(BudgetOverrun(name, "call", 2 * MIB, MIB, "peak", in_flight=False))

    (letter,) = letterbox.letters
    assert letter["Bcc"] is None
    assert letter["To"] == "ops@example.org, night@example.org"
    html = letter.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()
    assert "&lt;script&gt;" in html.get_content()
    slack = next(json.dumps(body) for body in office.bodies if "blocks" in body)
    assert "<!channel>" not in slack
    assert "&lt;!channel&gt;&amp;" in slack
    assert all(len(json.dumps(body)) < 3_000 for body in office.bodies)
    assert not [body for body in office.bodies if "\x1b" in str(body) or "\u202e" in str(body)]


def test_a_429_is_left_alone_for_as_long_as_it_asks(office: PostOffice) -> None:
    office.answers = [status(429, Retry_After="1")]

    with Alerts(
        [AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(office.url())}, retry_first=0.01
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(office.bodies) == 1)

    assert office.attempts[1] - office.attempts[0] >= 0.99
    assert (of(alerts, "hook").delivered, of(alerts, "hook").failures, of(alerts, "hook").lost) == (1, 1, 0)


def test_errors_of_the_server_are_tried_again_until_it_takes_the_message(office: PostOffice) -> None:
    office.answers = [status(500), status(503), hang_up, status(502)]

    with Alerts(
        [AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(office.url())}, retry_first=0.01
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(office.bodies) == 1)

    assert (of(alerts, "hook").failures, of(alerts, "hook").lost) == (4, 0)
    assert office.headers[0]["Idempotency-Key"] == f"{office.bodies[0]['incident']}-1"


def test_a_server_that_drips_is_given_up_in_time_and_tried_again(office: PostOffice) -> None:
    office.answers = [drip]

    with Alerts(
        [AlertRule("warning", notify="hook")],
        channels={"hook": WebhookChannel(office.url())},
        retry_first=0.01,
        timeout=0.3,
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(office.bodies) == 1)

    assert office.attempts[1] - office.attempts[0] < 3.0
    assert (of(alerts, "hook").failures, of(alerts, "hook").lost) == (1, 0)


def test_server_that_never_answers_holds_up_no_other_channel(office: PostOffice) -> None:
    rule = AlertRule("warning", notify=("silent", "hook", "mail"))
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted, and nothing is ever read
        port = silent.getsockname()[1]
        channels = {
            "silent": WebhookChannel(f"http://127.0.0.1:{port}/{TOKEN}"),
            "mail": EmailChannel("127.0.0.1", port, sender="a@example.org", recipients="b@example.org"),
            "hook": WebhookChannel(office.url()),
        }
        with Alerts([rule], channels=channels, timeout=60, drain=0.1) as alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: of(alerts, "hook").delivered == 1)

    assert time.monotonic() - begun < 15
    assert (of(alerts, "silent").left, of(alerts, "mail").left) == (1, 1)


def test_silent_servers_are_given_up_by_the_timeout_of_the_socket(caplog: pytest.LogCaptureFixture) -> None:
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

            def say(line: bytes) -> None:
                stream.write(line + b"\r\n")
                stream.flush()

            say(b"220 localhost")
            for line in stream:
                if line.upper().startswith(b"DATA"):
                    say(b"354 go on")
                    lines = list(iter(stream.readline, b".\r\n"))
                    self.subjects += [text.decode() for text in lines if text.startswith(b"Subject:")]
                say(b"221 bye" if line.upper().startswith(b"QUIT") else b"250 ok")


def test_mail_goes_by_tls_from_the_first_byte(authority: tuple[Path, ssl.SSLContext]) -> None:
    server = ImplicitTlsServer(authority[1])
    channel = EmailChannel(
        "localhost",
        server.port,
        sender="memtools@example.org",
        recipients="ops@example.org",
        security="tls",
        cafile=str(authority[0]),
    )

    with Alerts([AlertRule("warning", notify="mail")], channels={"mail": channel}, drain=PATIENCE_S) as alerts:
        emit(level(Level.WARNING))
    server.close()

    assert of(alerts, "mail").delivered == 1
    assert len(server.subjects) == 1
    assert server.subjects[0].startswith("Subject: [warning]")


def test_a_dead_endpoint_holds_up_nobody_else_and_what_is_lost_is_said(
    office: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    dead = WebhookChannel(f"http://127.0.0.1:{port}/{TOKEN}")
    rule = AlertRule("warning", notify=("dead", "hook"))

    with Alerts(
        [rule], channels={"dead": dead, "hook": WebhookChannel(office.url())}, queue_size=5, retry_first=0.01, drain=0.2
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
    assert len(office.bodies) == of(alerts, "hook").delivered


def test_what_was_dropped_while_a_server_was_away_is_told_by_the_next_message_that_arrives(office: PostOffice) -> None:
    office.answers = [status(500)] * 8
    rule = AlertRule("warning", notify="hook")

    with Alerts(
        [rule], channels={"hook": WebhookChannel(office.url())}, queue_size=2, retry_first=0.05, retry_max=0.05
    ) as alerts:
        for number in range(10):
            emit(BudgetOverrun(f"owner {number}", "call", 2 * MIB, MIB, "peak", in_flight=False))
        wait_until(lambda: of(alerts, "hook").waiting == 0 and of(alerts, "hook").delivered > 0)

    told = sum(int(str(body["dropped"])) for body in office.bodies)
    assert told == of(alerts, "hook").dropped > 0
    assert told + len(office.bodies) == 10


def test_a_refusal_for_good_is_not_tried_again(office: PostOffice, caplog: pytest.LogCaptureFixture) -> None:
    office.answers = [status(404)]

    with Alerts([AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(office.url())}) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "hook").refused == 1)
        emit(level(Level.NORMAL, Level.WARNING))

    assert len(office.attempts) == 2
    assert office.bodies[0]["dropped"] == 1
    assert "An alert to hook was refused and is dropped: HTTP 404" in caplog.text


def test_a_redirect_is_not_followed(office: PostOffice, caplog: pytest.LogCaptureFixture) -> None:
    office.answers = [status(307, Location=office.url())]

    with Alerts([AlertRule("warning", notify="hook")], channels={"hook": WebhookChannel(office.url())}) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "hook").refused == 1)

    assert len(office.attempts) == 1
    assert "redirects are not followed" in caplog.text


def test_a_mail_server_that_is_busy_is_asked_again(letterbox: Letterbox, mail: EmailChannel) -> None:
    letterbox.refusals = ["451 come back later"]

    with Alerts([AlertRule("warning", notify="email")], channels={"email": mail}, retry_first=0.01) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: len(letterbox.letters) == 1)

    assert (of(alerts, "email").failures, of(alerts, "email").lost) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "trusted", "words"),
    [
        ({"password": "wrong-password-99"}, True, "SMTPAuthenticationError 535"),
        ({}, False, "SSLCertVerificationError"),
        ({"host": "127.0.0.1"}, True, "SSLCertVerificationError"),
    ],
)
def test_a_password_is_not_given_to_whom_it_should_not_be(
    letterbox: Letterbox,
    authority: tuple[Path, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, str],
    trusted: bool,
    words: str,
) -> None:
    channel = mail_to(letterbox, authority[0] if trusted else None, **changes)

    with Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, drain=0.1) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: of(alerts, "email").failures == 1)

    assert letterbox.letters == []
    assert words in caplog.text


def test_a_server_without_starttls_gets_neither_password_nor_mail(
    authority: tuple[Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    letterbox = Letterbox(authority[1], offers_tls=False)
    try:
        channel = mail_to(letterbox, authority[0])
        with Alerts([AlertRule("warning", notify="email")], channels={"email": channel}, drain=0.1) as alerts:
            emit(level(Level.WARNING))
            wait_until(lambda: of(alerts, "email").failures == 1)
    finally:
        letterbox.close()

    assert letterbox.letters == []
    assert "does not offer what is needed" in caplog.text


def test_https_is_checked_by_certificate_and_name(
    office: PostOffice, authority: tuple[Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    path, context = authority
    office.server.socket = context.wrap_socket(office.server.socket, server_side=True)
    known = WebhookChannel(office.url("https", "localhost"), cafile=str(path))
    stranger = WebhookChannel(office.url("https", "localhost"))
    misnamed = WebhookChannel(office.url("https", "127.0.0.1"), cafile=str(path))
    rule = AlertRule("warning", notify=("known", "stranger", "misnamed"))

    with Alerts(
        [rule], channels={"known": known, "stranger": stranger, "misnamed": misnamed}, drain=0.1, service="prices"
    ) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: sum(channel.failures for channel in alerts.statistics().channels) == 2)
        wait_until(lambda: of(alerts, "known").delivered == 1)

    assert str(office.bodies[0]["source"]).startswith("prices on ")
    assert caplog.text.count("SSLCertVerificationError") == 2


def test_no_address_and_no_password_is_ever_shown(
    letterbox: Letterbox, authority: tuple[Path, ssl.SSLContext], office: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.CRITICAL, "mail.log")  # what the server says to itself
    office.answers = [status(404), status(500), hang_up]
    channels = {
        "slack": SlackChannel(office.url()),
        "hook": WebhookChannel(office.url(), headers={"Authorization": f"Bearer {TOKEN}"}),
        "email": mail_to(letterbox, authority[0], password="wrong-password-99"),
        "untrusted": mail_to(letterbox, None, password=PASSWORD),
    }
    rules = [AlertRule("warning", notify=tuple(channels))]

    with Alerts(rules, channels=channels, drain=0.3, retry_first=0.01, timeout=1.0) as alerts:
        emit(level(Level.WARNING))
        wait_until(lambda: all(channel.failures for channel in alerts.statistics().channels))
        shown = [repr(alerts), repr(alerts.statistics()), repr(rules), repr(channels)]

    everything = "\n".join([caplog.text, *shown, *(str(vars(record)) for record in caplog.records)])
    for secret in (TOKEN, PASSWORD, "wrong-password-99", USERNAME + "'"):
        assert secret not in everything
