"""The middleware of Django, in synchronous and asynchronous stacks of the real thing."""

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test.utils import override_settings
from django.urls import include, path, re_path
from werkzeug.test import Client

from memtools import ConfigError, Level, memory_scope
from memtools.integrations.django import MemoryMiddleware
from memtools.ledger import AccountStatistics, forget_accounts, native_reason, open_owners, statistics

MB = 10**6
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

kept: list[bytes] = []


def order(request: Any, number: int) -> HttpResponse:
    return HttpResponse(f"order {number}")


async def order_async(request: Any, number: int) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse(f"order {number}")


def keep(request: Any) -> HttpResponse:
    kept.append(bytes(MB))
    return HttpResponse("kept")


async def keep_async(request: Any) -> HttpResponse:
    await asyncio.to_thread(keep, request)
    return HttpResponse("kept")


def grow(request: Any) -> HttpResponse:
    with memory_scope("inner"):
        held = [bytes(MB) for _ in range(20)]
    return HttpResponse(str(len(held)))


def stream(request: Any) -> StreamingHttpResponse:
    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            kept.append(bytes(MB))
            yield b"piece"

    return StreamingHttpResponse(pieces())


async def stream_async(request: Any) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            kept.append(bytes(MB))
            yield b"piece"

    return StreamingHttpResponse(pieces())


def file(request: Any) -> FileResponse:
    return FileResponse(io.BytesIO(b"file"))


def fail(request: Any) -> HttpResponse:
    raise ZeroDivisionError


class Urls:
    shop = (path("items/<int:number>/", order),)
    urlpatterns = (
        path("orders/<int:number>/", order),
        path("async/<int:number>/", order_async),
        re_path(r"^old/(?P<number>[0-9]+)/$", order),
        path("shop/", include([*shop])),
        path("keep/", keep),
        path("keep-async/", keep_async),
        path("grow/", grow),
        path("stream/", stream),
        path("stream-async/", stream_async),
        path("file/", file),
        path("fail/", fail),
    )


@pytest.fixture(scope="module", autouse=True)
def configured() -> None:
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF=Urls,
            ALLOWED_HOSTS=["*"],
            MIDDLEWARE=["memtools.integrations.django.MemoryMiddleware", "django.middleware.common.CommonMiddleware"],
        )


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    kept.clear()
    yield
    kept.clear()
    forget_accounts()


def accounts() -> dict[str, AccountStatistics]:
    return {account.name: account for account in statistics().accounts}


def visit(*paths: str, handler: Any = None) -> list[bytes]:
    client = Client(handler or WSGIHandler())
    answers = []
    for one in paths:
        with client.get(one) as answer:
            answers.append(bytes(answer.data))
    return answers


async def visit_async(*paths: str) -> list[bytes]:
    transport = httpx.ASGITransport(ASGIHandler(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [(await client.get(one)).content for one in paths]


# Django leaves the file for the body open where an asynchronous request fails.
@pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/orders/7/", "/orders/<int:number>/"),
        ("/async/7/", "/async/<int:number>/"),
        ("/old/7/", "/^old/(?P<number>[0-9]+)/$"),
        ("/shop/items/7/", "/shop/items/<int:number>/"),
        ("/nowhere/", "<unmatched>"),
        ("/file/", "/file/"),
        ("/fail/", "/fail/"),
    ],
)
async def test_request_is_counted_at_its_route(url: str, name: str) -> None:
    await asyncio.to_thread(visit, url)
    await visit_async(url)

    assert {found: account.started for found, account in accounts().items()} == {name: 2}
    assert not open_owners()
    gc.collect()  # or the file is found open in a later test


def test_mount_point_stands_in_front() -> None:
    handler = WSGIHandler()
    client = Client(lambda environ, start: handler({**environ, "SCRIPT_NAME": "/app"}, start))

    client.get("/orders/7/").close()

    assert list(accounts()) == ["/app/orders/<int:number>/"]


@needs_native
@pytest.mark.parametrize(("url", "size"), [("/keep/", MB), ("/stream/", 3 * MB)])
def test_route_has_what_its_requests_keep(url: str, size: int) -> None:
    handler = WSGIHandler()
    visit(url, handler=handler)
    before = accounts()[url].live_bytes or 0

    visit(*[url] * 20, handler=handler)

    assert (accounts()[url].live_bytes or 0) - before == pytest.approx(20 * size, rel=0.02)
    assert accounts()[url].exact


@needs_native
@pytest.mark.parametrize(
    ("url", "name", "size"),
    [
        ("/keep/", "/keep/", MB),
        ("/keep-async/", "/keep-async/", MB),
        ("/stream-async/", "/stream-async/ (body)", 3 * MB),
    ],
)
async def test_route_has_what_its_asynchronous_requests_keep(url: str, name: str, size: int) -> None:
    await visit_async(url)
    before = accounts()[name].live_bytes or 0

    assert len(await visit_async(*[url] * 20)) == 20

    assert (accounts()[name].live_bytes or 0) - before == pytest.approx(20 * size, rel=0.03)


@needs_native
def test_budget_answers_500_and_harms_no_other_request() -> None:
    with override_settings(MEMTOOLS={"budget": "5 MB"}):
        handler = WSGIHandler()
    client = Client(handler)

    with client.get("/grow/") as grown, client.get("/orders/7/") as served:
        assert (grown.status_code, served.status_code) == (500, 200)


async def test_requests_are_refused_while_memory_is_critical() -> None:
    monitor = SimpleNamespace(level=Level.CRITICAL)
    with override_settings(MEMTOOLS={"monitor": monitor, "exempt": ["/orders/7/"], "retry_after": 9}):
        client, asynchronous = Client(WSGIHandler()), httpx.ASGITransport(ASGIHandler())

    with client.get("/keep/") as refused, client.get("/orders/7/") as served:
        assert (refused.status_code, refused.headers["Retry-After"], served.status_code) == (503, "9", 200)
    async with httpx.AsyncClient(transport=asynchronous, base_url="http://test") as browser:
        assert (await browser.get("/keep/")).status_code == 503
    assert kept == []


def test_body_that_is_not_read_ends_the_request() -> None:
    Client(WSGIHandler()).get("/stream/").close()

    assert not open_owners()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["warn"], "a dict of options"),
        ({"warm": "5 MB"}, "MEMTOOLS='warm' is not accepted: use the options warn, budget"),
        ({"warn": "much"}, "warn='much'"),
        ({"exempt": "/health"}, "exempt='/health'"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(chosen: object, message: str) -> None:
    with override_settings(MEMTOOLS=chosen), pytest.raises(ConfigError, match=message):
        MemoryMiddleware(lambda request: HttpResponse())
