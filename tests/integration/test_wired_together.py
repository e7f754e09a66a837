"""Monitor, alerts, metrics, middleware and a component as one service: it starts, ends, forks and keeps its secrets."""

import asyncio
import http.server
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from memtools import BoundedList, Component, Config, Level, MemoryMonitor, WeakCache, memory_scope
from memtools.alerts import AlertRule, Alerts, EmailChannel, SlackChannel, WebhookChannel
from memtools.cleanup import Reclaimer
from memtools.events import LevelChanged, subscribe
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.integrations import MemoryFilter, MemoryMiddleware
from memtools.monitor import MemorySource, monitors
from memtools.readings import Headroom, Limit, LimitSource
from memtools.reports import html_page, report

PROGRAMS = Path(__file__).with_name("programs")
MIB = 2**20
SECRETS = ("T0K3N-8642", "open-sesame-9317", "bearer-5555", "night-porter")
HOSTILE = "pay\r\nBcc: thief@example.org\r\n\r\n<script>alert(1)</script>\x1b[31m{}\u202e"


class Machine:
    """Scripted gauges."""

    def __init__(self) -> None:
        self.used = 100 * MIB
        self.now = 0.0
        self.source = MemorySource(
            used=lambda: self.used,
            limit=lambda: Limit(1024 * MIB, LimitSource.USER),
            headroom=lambda: Headroom(None, LimitSource.UNKNOWN, (), None),
            clock=lambda: self.now,
        )

    def look(self, monitor: MemoryMonitor, used_mib: int, times: int = 2) -> None:
        for _ in range(times):
            self.now += 1.0
            self.used = used_mib * MIB
            monitor.check()

    def monitor(self, warning: str = "60%", critical: str = "80%") -> MemoryMonitor:
        reclaimer = Reclaimer([], read=self.source.used)
        return MemoryMonitor(
            warning,
            critical,
            source=self.source,
            reclaimer=reclaimer,
            pressure=False,
            cleanup_interval=0,
            min_flow=0,
            name="wired",
        )


class Pager:
    """A channel that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def open(self) -> None: ...

    def send(self, alert: object, deadline: object) -> None:
        self.told.append(f"{alert.kind} {alert.level.name}")  # type: ignore[attr-defined]

    def close(self) -> None: ...


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def refuser() -> Iterator[str]:
    """The address of a server that refuses everything, with the request in its answer, as careless ones do."""

    class Refuser(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(404, f"no {self.path}")
            self.end_headers()
            self.wfile.write(str(self.headers).encode() + body)

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuser) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/services/{SECRETS[0]}?key={SECRETS[3]}"
        server.shutdown()
        thread.join()


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Service:
    """An application with all parts of memtools, for one client inside the process."""

    def __init__(self, monitor: MemoryMonitor, pager: Pager) -> None:
        self.monitor = monitor
        rules = [AlertRule("warning", notify="pager"), AlertRule("critical", notify="pager")]
        self.alerts = Alerts(rules, channels={"pager": pager}, monitor=monitor, drain=20)
        self.registry = CollectorRegistry()
        self.cache: WeakCache[int, str] = WeakCache(strong=10)
        self.visits: BoundedList[str] = BoundedList(maxlen=100)
        self.middleware: MemoryMiddleware | None = None
        routes = [
            Route("/orders/{number:int}", monitor.watch(self.order)),
            Mount("/metrics", make_asgi_app(self.registry)),
        ]
        self.app = Starlette(routes=routes, lifespan=self.lifespan)
        self.app.add_middleware(MemoryMiddleware, monitor=monitor, exempt=("/metrics/",))

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with Component("service") as parts:
            parts.own(self.cache)
            parts.own(self.visits)
            parts.own(MemtoolsCollector(self.registry))
            parts.create_task(asyncio.sleep(3600), name="refresh")
            async with self.alerts, self.monitor:
                yield

    async def order(self, request: Request) -> Response:
        self.visits.append(request.path_params["number"])
        return PlainTextResponse(self.cache.get_or_create(request.path_params["number"], lambda: "order"))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with self.lifespan(self.app), httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def test_all_parts_start_work_and_end_together(machine: Machine) -> None:
    pager = Pager()
    service = Service(machine.monitor(), pager)

    async with service.client() as client:
        answers = [(await client.get(f"/orders/{number}")).status_code for number in range(20)]
        await asyncio.to_thread(machine.look, service.monitor, 900)
        refused = await client.get("/orders/1")
        metrics = (await client.get("/metrics/")).text
        await asyncio.to_thread(machine.look, service.monitor, 100, 30)
        back = await client.get("/orders/1")

    assert set(answers) == {200}
    assert (refused.status_code, back.status_code) == (503, 200)
    assert int(refused.headers["Retry-After"]) >= 1
    assert 'memtools_monitor_level{name="wired"} 2.0' in metrics
    assert 'memtools_scope_entered_total{kind="scope",name="/orders/{number:int}"} 20.0' in metrics
    assert any(told.endswith("CRITICAL") for told in pager.told)
    assert pager.told[-1].startswith("resolved")
    assert monitors() == ()
    assert not service.alerts.is_running
    assert (len(service.cache), len(service.visits)) == (0, 0)


@pytest.mark.once
def test_a_thousand_starts_and_stops_leave_nothing(machine: Machine) -> None:
    monitor = machine.monitor()
    alerts = Alerts([AlertRule("warning", notify="log", action=lambda alert: None)], monitor=monitor)

    def once() -> None:
        with alerts, monitor, MemtoolsCollector(CollectorRegistry()):
            pass

    once()
    before = threading.active_count(), _descriptors()
    for _ in range(1000):
        once()

    assert (threading.active_count(), _descriptors()) == before
    assert monitors() == ()


async def test_two_hundred_starts_and_stops_on_a_loop_leave_nothing(machine: Machine) -> None:
    monitor = machine.monitor()
    alerts = Alerts([AlertRule("warning", notify="log")], monitor=monitor)

    async def once() -> None:
        async with Component("service") as parts, alerts, monitor:
            parts.own(MemtoolsCollector(CollectorRegistry()))

    await once()
    before = threading.active_count(), _descriptors(), len(asyncio.all_tasks())
    # Fewer than in a thread: each end of alerts waits for its threads, 10 ms at a time.
    for _ in range(200):
        await once()

    assert (threading.active_count(), _descriptors(), len(asyncio.all_tasks())) == before
    assert monitors() == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_hundred_forks_under_load_hang_no_process() -> None:
    program = PROGRAMS / "everything_and_forks.py"

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False)

    assert done.stdout.split() == ["100", "1"], done.stderr


@pytest.mark.once
def test_environment_alone_sets_up_monitor_and_alerts(machine: Machine) -> None:
    environ = {"MEMTOOLS_WARNING": "30%", "MEMTOOLS_CRITICAL": "40%", "MEMTOOLS_SAMPLE_EVERY": "1"}
    pager = Pager()
    settings = Config.from_env(environ=environ).monitor()
    reclaimer = Reclaimer([], read=machine.source.used)
    monitor = MemoryMonitor(**settings, source=machine.source, reclaimer=reclaimer, pressure=False)
    rules = [AlertRule(level, notify="pager", categories="memory") for level in ("warning", "critical")]

    with Alerts(rules, channels={"pager": pager}, monitor=monitor, drain=20):
        for used_mib in (350, 350, 450, 450):
            machine.used = used_mib * MIB
            machine.now += 1.0
            monitor.record("order", 0.001)  # every operation looks, as the environment says

    assert [told.split()[1] for told in pager.told] == ["WARNING", "CRITICAL"]
    assert monitor.level is Level.CRITICAL


@pytest.mark.once
def test_service_in_trouble_shows_no_secret(machine: Machine, refuser: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(MemoryFilter())
    channels = {
        "slack": SlackChannel(refuser),
        "hook": WebhookChannel(refuser, headers={"Authorization": f"Bearer {SECRETS[2]}"}),
        "email": EmailChannel(
            "localhost", 9, sender="a@example.org", recipients=["b@example.org"], username="u", password=SECRETS[1]
        ),
    }
    monitor = machine.monitor()
    received: list[object] = []
    registry = CollectorRegistry()
    rule = AlertRule("warning", notify=tuple(channels), action=lambda alert: 1 / 0)

    with subscribe(received.append), MemtoolsCollector(registry):
        with Alerts([rule], channels=channels, monitor=monitor, retry_first=0.01, retry_max=0.01, drain=1) as alerts:
            monitor.on_warning(lambda change: 1 / 0)
            machine.look(monitor, 700)
            _wait_until(lambda: sum(one.refused + one.failures for one in alerts.statistics().channels) >= 3)
            metrics = generate_latest(registry).decode()
            shown = [repr(alerts), repr(alerts.statistics()), str(alerts.statistics()), repr(rule)]
        shown += [repr(channel) + str(vars(channel)) for channel in channels.values()]
        shown += [caplog.text, metrics, monitor.report(), repr(monitor), repr(monitor.statistics()), repr(received)]

    assert any(isinstance(event, LevelChanged) for event in received)
    assert "HTTP 404" in caplog.text
    assert [secret for secret in SECRETS for text in shown if secret in text] == []


@pytest.mark.once
def test_names_from_requests_are_cut_and_escaped_everywhere(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    monitor = machine.monitor()

    with MemtoolsCollector(registry), Alerts([AlertRule("warning", notify="log")], monitor=monitor, drain=20):
        with memory_scope(HOSTILE + "x" * 10_000, warn=1, budget="1 B", on_exceed="warn", meter="tracemalloc"):
            kept = bytearray(2 * MIB)
            monitor.record(HOSTILE, 0.1)
            told = monitor.report()
        metrics = generate_latest(registry).decode()
        page = html_page(report())
        del kept

    for text in (metrics, told, caplog.text):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "Bcc" not in [line.partition(":")[0].strip() for line in text.splitlines()]
        assert "x" * 1_000 not in text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
