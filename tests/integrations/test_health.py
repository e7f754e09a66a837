"""Health probes in Starlette, FastAPI, Flask and Django, answered by a real monitor with scripted memory."""

import json
import time
from collections.abc import Iterator
from typing import Any

import django
import httpx
import pytest
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from memtools import ConfigError, MemoryMonitor
from memtools.cleanup import Reclaimer
from memtools.integrations import MemoryMiddleware
from memtools.integrations.health import HealthApp, WSGIHealthApp, health_response
from memtools.integrations.wsgi import WSGIMemoryMiddleware
from memtools.monitor import MemorySource
from memtools.readings import Headroom, Limit, LimitSource

MIB = 2**20


class Machine:
    """Scripted memory and time."""

    def __init__(self) -> None:
        self.used_mib, self.now = 100, time.monotonic()
        self.monitor = MemoryMonitor(
            "60%",
            "80%",
            source=MemorySource(
                used=lambda: self.used_mib * MIB,
                limit=lambda: Limit(1000 * MIB, LimitSource.USER),
                headroom=lambda: Headroom(None, LimitSource.UNKNOWN, (), None),
                clock=lambda: self.now,
            ),
            reclaimer=Reclaimer([], read=lambda: self.used_mib * MIB),
            exhausted_after=60,
            min_interval=3600,
            max_interval=3600,
            pressure=False,
        )

    def set(self, used_mib: int, after_s: float = 1.0) -> None:
        self.used_mib, self.now = used_mib, self.now + after_s
        self.monitor.check()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    with machine.monitor:
        machine.set(100)
        yield machine


async def _codes(app: Any, prefix: str = "/health") -> list[int]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [(await client.get(f"{prefix}/{probe}")).status_code for probe in ("ready", "live")]


def _asgi_apps(monitor: MemoryMonitor) -> list[Any]:
    starlette = Starlette(routes=[Mount("/health", HealthApp(monitor))])
    fastapi = FastAPI()
    fastapi.mount("/health", HealthApp(monitor))
    return [starlette, fastapi, HealthApp(monitor)]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["starlette", "fastapi", "bare"])
async def test_readiness_fails_before_liveness(machine: Machine, kind: int) -> None:
    app = _asgi_apps(machine.monitor)[kind]
    seen = [await _codes(app)]
    machine.set(900)
    seen.append(await _codes(app))
    machine.set(900, after_s=59)
    seen.append(await _codes(app))
    machine.set(900, after_s=2)
    seen.append(await _codes(app))
    for _ in range(12):
        machine.set(100)
    seen.append(await _codes(app))

    assert seen == [[200, 200], [503, 200], [503, 200], [503, 503], [200, 200]]


async def test_body_tells_level_use_limit_and_reason(machine: Machine) -> None:
    machine.set(900)
    transport = httpx.ASGITransport(HealthApp(machine.monitor))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/health/ready")
        head = await client.head("/health/ready")
        others = [(await client.post("/health/ready")).status_code, (await client.get("/health/none")).status_code]

    assert answer.json() == {
        "status": "critical",
        "reason": "memory is CRITICAL: 900.0 MiB of 1000.0 MiB (90%)",
        "level": "CRITICAL",
        "used_bytes": 900 * MIB,
        "limit_bytes": 1000 * MIB,
        "headroom_bytes": None,
        "age_s": 0.0,
        "monitor": machine.monitor.name,
    }
    assert answer.headers["cache-control"] == "no-store"
    assert (head.status_code, head.content, head.headers["content-length"]) == (503, b"", str(len(answer.content)))
    assert others == [405, 404]


async def test_monitor_that_stopped_is_not_ready() -> None:
    machine = Machine()
    with machine.monitor:
        machine.set(100)
        running = await _codes(HealthApp(machine.monitor))
    stopped = await _codes(HealthApp(machine.monitor))

    assert (running, stopped) == ([200, 200], [503, 200])
    assert json.loads(health_response(machine.monitor, "ready").body)["status"] == "stopped"


async def test_bare_application_answers_the_lifespan(machine: Machine) -> None:
    incoming, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await HealthApp(machine.monitor)({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_flask_serves_the_probes_beside_the_application(machine: Machine) -> None:
    app = Flask("shop")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/health": WSGIHealthApp(machine.monitor)})  # type: ignore[method-assign]
    client = app.test_client()

    normal = client.get("/health/ready")
    machine.set(900)
    short = client.get("/health/ready")
    head, wrong = client.head("/health/live"), client.post("/health/live")

    assert (normal.status_code, short.status_code, head.status_code, wrong.status_code) == (200, 503, 200, 405)
    assert short.get_json()["level"] == "CRITICAL"
    assert short.headers["Cache-Control"] == "no-store"
    assert head.data == b""


def test_django_view_answers_with_the_function(machine: Machine) -> None:
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
        django.setup()

    def probe(request: HttpRequest) -> HttpResponse:
        answer = health_response(machine.monitor, request.path)
        return HttpResponse(answer.body, status=answer.status, headers=answer.headers)

    machine.set(900)
    found = probe(RequestFactory().get("/health/ready/"))

    assert (found.status_code, json.loads(found.content)["status"]) == (503, "critical")
    assert found["Content-Type"] == "application/json"


@pytest.mark.parametrize("kind", [HealthApp, WSGIHealthApp])
def test_object_without_health_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="health"):
        kind(object())


async def test_asgi_middleware_lets_the_minimum_through(machine: Machine) -> None:
    async def order(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = MemoryMiddleware(Starlette(routes=[Route("/", order)]), monitor=machine.monitor, meter="rss")
    machine.set(900)
    transport = httpx.ASGITransport(app)
    codes = []
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(50):  # 5 s
            machine.now += 0.1
            codes.append((await client.get("/")).status_code)

    assert 4 <= codes.count(200) <= 5
    assert codes.count(200) + codes.count(503) == 50


def test_wsgi_middleware_lets_the_minimum_through(machine: Machine) -> None:
    app = Flask("shop")
    app.add_url_rule("/", view_func=lambda: "ok")
    app.wsgi_app = WSGIMemoryMiddleware(app.wsgi_app, monitor=machine.monitor, meter="rss")  # type: ignore[method-assign]
    client = app.test_client()
    machine.set(900)
    codes = []
    for _ in range(50):
        machine.now += 0.1
        codes.append(client.get("/").status_code)

    assert 4 <= codes.count(200) <= 5
    assert codes.count(200) + codes.count(503) == 50
