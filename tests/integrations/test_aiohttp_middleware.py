"""MemoryMiddleware in applications of aiohttp, under its own server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, web
from aiohttp.test_utils import TestServer

from memtools import ConfigError, Level
from memtools.integrations import MiddlewareStatistics
from memtools.integrations.aiohttp import MemoryMiddleware
from memtools.ledger import AccountStatistics, active_owner, choose_meter, forget_accounts, statistics

MIB = 2**20

needs_native = pytest.mark.skipif(choose_meter().name != "native", reason="only the native meter counts to the byte")


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    yield
    forget_accounts()


def _accounts() -> dict[str, AccountStatistics]:
    return {account.name: account for account in statistics().accounts if account.kind == "scope"}


class Shop:
    """An application with routes of every kind; what it keeps is kept until its end."""

    def __init__(self, middleware: MemoryMiddleware) -> None:
        self.kept: list[bytes] = []
        self.seen: list[str | None] = []
        self.app = web.Application(middlewares=[middleware])
        inner = web.Application()
        inner.router.add_get("/items/{item}", self.order)
        self.app.router.add_get("/orders/{number}", self.order)
        self.app.router.add_get("/leak/{size}", self.leak)
        self.app.router.add_get("/stream", self.stream)
        self.app.router.add_get("/moved", self.moved)
        self.app.router.add_get("/fails", self.fails)
        self.app.router.add_get("/socket", self.socket)
        self.app.add_subapp("/tenants/", inner)

    async def order(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def leak(self, request: web.Request) -> web.Response:
        await asyncio.sleep(0)
        self.kept.append(b"x" * int(request.match_info["size"]))
        return web.Response(text="ok")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(4):
            self.kept.append(b"x" * MIB)
            await response.write(b"piece ")
        return response

    async def moved(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("/orders/1")

    async def fails(self, request: web.Request) -> web.Response:
        raise RuntimeError("no orders")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        owner = active_owner()
        self.seen.append(owner.name if owner else None)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data * 2)
        return socket

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        async with TestServer(self.app) as server, ClientSession(server.make_url("/")) as client:
            yield client

    async def get(self, *paths: str) -> list[tuple[int, str]]:
        answers: list[tuple[int, str]] = []
        async with self.client() as client:
            for path in paths:
                async with client.get(path, allow_redirects=False) as answer:
                    answers.append((answer.status, await answer.text()))
        return answers


class TestNames:
    async def test_request_is_named_by_the_template_of_its_route(self) -> None:
        middleware = MemoryMiddleware()

        answers = await Shop(middleware).get("/orders/7", "/orders/8", "/tenants/items/9", "/nowhere")

        assert [status for status, _ in answers] == [200, 200, 200, 404]
        assert {name: account.started for name, account in _accounts().items()} == {
            "/orders/{number}": 2,
            "/tenants/items/{item}": 1,
            "<unmatched>": 1,
        }
        assert middleware.statistics() == MiddlewareStatistics(requests=4, unmatched=1, refused=0)

    async def test_answer_that_is_raised_is_no_failure(self) -> None:
        answers = await Shop(MemoryMiddleware()).get("/moved", "/nowhere")

        assert [status for status, _ in answers] == [302, 404]
        assert {name: account.failed for name, account in _accounts().items()} == {"/moved": 0, "<unmatched>": 0}

    async def test_exception_of_a_handler_passes(self) -> None:
        ((status, _),) = await Shop(MemoryMiddleware()).get("/fails")

        assert status == 500
        assert _accounts()["/fails"].failed == 1

    async def test_socket_has_no_scope(self) -> None:
        shop = Shop(MemoryMiddleware())

        async with shop.client() as client, client.ws_connect("/socket") as socket:
            await socket.send_str("ab")
            message = await socket.receive()

        assert (message.type, message.data) == (WSMsgType.TEXT, "abab")
        assert shop.seen == [None]


@needs_native
class TestFigures:
    async def test_route_that_keeps_memory_is_named_to_the_byte(self) -> None:
        shop = Shop(MemoryMiddleware())

        await asyncio.gather(*(shop.get(*[f"/leak/{MIB}", "/orders/1"] * 10) for _ in range(4)))
        accounts = _accounts()

        assert accounts["/leak/{size}"].retained_bytes == pytest.approx(40 * MIB, rel=0.02)
        assert accounts["/orders/{number}"].retained_bytes < MIB

    async def test_streamed_body_is_charged(self) -> None:
        answers = await Shop(MemoryMiddleware()).get("/stream")

        assert answers == [(200, "piece " * 4)]
        assert _accounts()["/stream"].retained_bytes == pytest.approx(4 * MIB, rel=0.02)

    async def test_request_over_its_budget_is_answered_with_500(self, caplog: pytest.LogCaptureFixture) -> None:
        answers = await Shop(MemoryMiddleware(budget="8 MiB")).get(f"/leak/{MIB}", f"/leak/{20 * MIB}", "/orders/1")

        assert [status for status, _ in answers] == [200, 500, 200]
        assert "BudgetExceeded: /leak/{size} used" in caplog.text

    async def test_high_peak_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        await Shop(MemoryMiddleware(warn="8 MiB")).get(f"/leak/{20 * MIB}")

        assert "High peak: /leak/{size} used 20.0 MiB" in caplog.text


class TestRefusals:
    async def test_requests_are_refused_while_memory_is_critical(self) -> None:
        class Critical:
            level = Level.CRITICAL

        middleware = MemoryMiddleware(monitor=Critical(), retry_after=7, exempt=("/orders/1",))
        shop = Shop(middleware)

        async with shop.client() as client, client.get("/orders/2") as answer:
            headers = answer.headers
        answers = await Shop(middleware).get("/orders/1", "/orders/2")

        assert headers["Retry-After"] == "7"
        assert [status for status, _ in answers] == [200, 503]
        assert middleware.statistics() == MiddlewareStatistics(requests=1, unmatched=0, refused=2)

    @pytest.mark.parametrize("options", [{"warn": "much"}, {"budget": -1}, {"exempt": "/health"}, {"monitor": 7}])
    def test_senseless_option_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(options))):
            MemoryMiddleware(**options)
