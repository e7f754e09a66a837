"""MemoryMiddleware in applications of Starlette and FastAPI, and in bare ones."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from memtools import ConfigError, Level, memory_scope
from memtools.errors import BudgetExceeded
from memtools.events import HighUsage, subscribe
from memtools.integrations import MemoryFilter, MemoryMiddleware, MiddlewareStatistics, route_template
from memtools.integrations._requests import UNMATCHED
from memtools.ledger import AccountStatistics, active_owner, choose_meter, forget_accounts, statistics


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    yield
    forget_accounts()


def _accounts() -> dict[str, AccountStatistics]:
    return {account.name: account for account in statistics().accounts}


async def _get(app: Any, *paths: str, **options: Any) -> list[httpx.Response]:
    transport = httpx.ASGITransport(app, **options)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [await client.get(path) for path in paths]


async def _ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def _starlette() -> Starlette:
    inner = [Route("/orders/{id:int}", _ok), Route("/", _ok)]
    mounts = [
        Mount("/static", StaticFiles(directory=".")),
        Mount("/tenants/{tenant}", routes=inner),
        Mount("/numbers/{number:int}", routes=inner),
        Mount("/outer/{a}", routes=[Mount("/plain", routes=inner)]),
    ]
    return Starlette(routes=[*inner, *mounts])


def _fastapi() -> FastAPI:
    app, sub, router, outer = FastAPI(), FastAPI(), APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    @app.get("/orders/{id}")
    @sub.get("/orders/{id}")
    @router.get("/orders/{id}")
    async def order(id: str) -> str:  # noqa: A002  # the name of the parameter in the path
        return id

    outer.include_router(router)
    app.include_router(outer, prefix="/api")
    app.include_router(router)
    app.mount("/tenants/{tenant}", sub)
    return app


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/orders/7", "/orders/{id:int}"),
        ("/", "/"),
        ("/nowhere/7", UNMATCHED),
        ("/tenants/acme/orders/7", "/tenants/{tenant}/orders/{id:int}"),
        ("/tenants/orders/orders/7", "/tenants/{tenant}/orders/{id:int}"),
        ("/tenants/acme/nowhere", "/tenants/{tenant}"),
        ("/numbers/007/orders/7", "/{number}/orders/{id:int}"),
        ("/outer/x/plain/orders/7", "/outer/{a}/plain/orders/{id:int}"),
        ("/static/pyproject.toml", "/static"),
    ],
)
async def test_starlette_request_is_named_by_its_route(path: str, label: str) -> None:
    await _get(MemoryMiddleware(_starlette(), meter="rss"), path)

    assert list(_accounts()) == [label]


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/orders/7", "/orders/{id}"),
        ("/inner/orders/7", "/inner/orders/{id}"),
        ("/api/outer/inner/orders/7", "/api/outer/inner/orders/{id}"),
        ("/tenants/acme/orders/7", "/tenants/{tenant}/orders/{id}"),
        ("/tenants/acme/nowhere", "/tenants/{tenant}"),
        ("/nowhere/7", UNMATCHED),
    ],
)
async def test_fastapi_request_is_named_by_its_route(path: str, label: str) -> None:
    await _get(MemoryMiddleware(_fastapi(), meter="rss"), path)

    assert list(_accounts()) == [label]


async def test_hosts_routers_and_mounts_in_mounts_are_named() -> None:
    deep = Router(routes=[Mount("/{b}", Starlette(routes=[Route("/c/{d}", _ok)]))])
    routes = [
        Mount("/api", Router(routes=[Route("/users/{id}", _ok)])),
        Mount("/deep/{a}", deep),
        Host("{shop}.example.org", Router(routes=[Route("/orders/{id}", _ok)])),
        Mount("/", routes=[Route("/last/{id}", _ok)]),
    ]
    app = MemoryMiddleware(Starlette(routes=routes))

    await _get(app, "/api/users/7", "/deep/u/v/c/w", "/last/8", "http://a.example.org/orders/9")

    assert set(_accounts()) == {"/api/users/{id}", "/deep/{a}/{b}/c/{d}", "/last/{id}", "/orders/{id}"}


async def test_route_name_begins_with_the_servers_root_path() -> None:
    app = MemoryMiddleware(_starlette(), meter="rss")

    await _get(app, "/proxy/orders/7", "/proxy/tenants/acme/orders/7", root_path="/proxy")

    assert set(_accounts()) == {"/proxy/orders/{id:int}", "/proxy/tenants/{tenant}/orders/{id:int}"}


async def test_route_is_found_between_other_middleware() -> None:
    async def pass_on(request: Request, call_next: Callable[[Request], Any]) -> Response:
        return await call_next(request)

    app = _starlette()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(MemoryMiddleware, meter="rss")
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    await _get(app, "/orders/7")

    assert list(_accounts()) == ["/orders/{id:int}"]


async def test_different_paths_of_a_route_are_one_name() -> None:
    app = MemoryMiddleware(_starlette(), meter="rss")

    await _get(app, *(f"/orders/{number}" for number in range(50)), *(f"/x{number}" for number in range(50)))

    assert {name: account.started for name, account in _accounts().items()} == {"/orders/{id:int}": 50, UNMATCHED: 50}
    assert app.statistics() == MiddlewareStatistics(requests=100, unmatched=50, refused=0)


async def test_concurrent_requests_are_charged_separately() -> None:
    gate = asyncio.Event()

    async def hold(request: Request) -> Response:
        block = bytearray(int(request.path_params["size"]))
        await gate.wait()
        return PlainTextResponse(str(len(block)))

    async def small(request: Request) -> Response:
        block = bytearray(10_000)
        await asyncio.sleep(0)
        gate.set()
        return PlainTextResponse(str(len(block)))

    app = MemoryMiddleware(Starlette(routes=[Route("/big/{size}", hold), Route("/small", small)]), meter="tracemalloc")
    await asyncio.gather(_get(app, "/big/20000000"), _get(app, "/small"))

    accounts = _accounts()
    assert accounts["/big/{size}"].peak_bytes >= 20_000_000
    assert 10_000 <= accounts["/small"].peak_bytes < 5_000_000
    assert accounts["/big/{size}"].exact


@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])  # before 2.4 Starlette streams in a task of its own
async def test_streamed_body_is_charged_to_its_request(spec_version: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            block = bytearray(2_000_000)
            await asyncio.sleep(0)
            yield b"x"
            del block

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks())

    async def app_of_version(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"asgi": {"version": "3.0", "spec_version": spec_version}}, receive, send)

    app = MemoryMiddleware(Starlette(routes=[Route("/stream", stream)]), meter="tracemalloc")
    (answer,) = await _get(app_of_version, "/stream")

    assert answer.text == "xxx"
    assert 2_000_000 <= _accounts()["/stream"].peak_bytes < 4_000_000
    assert _accounts()["/stream"].children == ()


async def test_background_task_is_charged_to_its_request() -> None:
    async def later() -> None:
        bytearray(8_000_000)

    async def background(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(later))

    app = MemoryMiddleware(Starlette(routes=[Route("/background", background)]), meter="tracemalloc")
    await _get(app, "/background")

    assert _accounts()["/background"].peak_bytes >= 8_000_000


async def test_task_factory_is_kept_and_tracks_only_request_tasks() -> None:
    made: list[str] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(type(coro).__name__)
        return asyncio.Task(coro, loop=loop, **options)

    async def spawn(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(_ok_app(scope, receive, send))

    asyncio.get_running_loop().set_task_factory(factory)
    app = MemoryMiddleware(spawn, meter="tracemalloc")
    await _get(app, "/a")
    await _get(app, "/b")
    await asyncio.create_task(asyncio.sleep(0))

    assert [name for name in made if name in ("TrackedCoroutine", "coroutine")] == [
        "TrackedCoroutine",
        "TrackedCoroutine",
        "coroutine",
    ]


async def _ok_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_scope_in_an_endpoint_is_below_its_route() -> None:
    async def order(request: Request) -> Response:
        async with memory_scope("load", meter="rss"):
            return PlainTextResponse("ok")

    await _get(MemoryMiddleware(Starlette(routes=[Route("/orders", order)]), meter="rss"), "/orders")

    assert [child.name for child in _accounts()["/orders"].children] == ["load"]


async def test_scope_before_the_router_is_below_unmatched() -> None:
    async def time_it(request: Request, call_next: Callable[[Request], Any]) -> Response:
        with memory_scope("middleware", meter="rss"):
            return await call_next(request)

    app = _starlette()
    app.add_middleware(BaseHTTPMiddleware, dispatch=time_it)
    await _get(MemoryMiddleware(app, meter="rss"), "/orders/7")

    accounts = _accounts()
    assert list(accounts) == [UNMATCHED, "/orders/{id:int}"]
    assert [child.name for child in accounts[UNMATCHED].children] == ["middleware"]
    assert (accounts[UNMATCHED].started, accounts["/orders/{id:int}"].started) == (0, 1)


async def test_open_request_has_the_name_of_its_route_everywhere() -> None:
    seen: list[object] = []

    async def order(request: Request) -> Response:
        record = logging.makeLogRecord({"msg": "order"})
        MemoryFilter().filter(record)
        owner = active_owner()
        assert owner is not None
        seen.extend([record.memory_scope, owner.name, owner.path, list(_accounts())])
        return PlainTextResponse("ok")

    inner = Starlette(routes=[Mount("/tenants/{tenant}", routes=[Route("/orders/{id}", order)])])
    await _get(MemoryMiddleware(inner, meter="rss"), "/tenants/acme/orders/7")

    name = "/tenants/{tenant}/orders/{id}"
    assert seen == [name, name, (name,), [name]]


async def test_unmatched_open_request_is_listed_and_renamed_later() -> None:
    names: list[object] = []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        names.append(list(_accounts()))
        scope["name"] = "/late"
        names.append(list(_accounts()))
        await _ok_app(scope, receive, send)

    await _get(MemoryMiddleware(late, label=lambda scope: scope.get("name"), meter="rss"), "/")

    assert names == [[UNMATCHED], ["/late"]]
    assert list(_accounts()) == ["/late"]


async def test_label_is_not_called_again_once_the_route_is_known() -> None:
    calls: list[object] = []

    def label(scope: Any) -> str | None:
        calls.append(scope.get("route"))
        return route_template(scope)

    async def order(request: Request) -> Response:
        for _ in range(5):
            with memory_scope("part"):
                pass
        return PlainTextResponse("ok")

    await _get(MemoryMiddleware(Starlette(routes=[Route("/orders", order)]), label=label), "/orders")

    assert len(calls) == 1
    assert [(child.name, child.started) for child in _accounts()["/orders"].children] == [("part", 5)]


@pytest.mark.parametrize(("inherited", "charged"), [(True, True), (False, False)])
async def test_service_started_in_a_request_is_charged_if_inherited(inherited: bool, charged: bool) -> None:
    if choose_meter().name != "native":
        pytest.skip("the other meters count tasks of their own elsewhere")
    services: list[asyncio.Task[bytearray]] = []

    async def serve_all() -> bytearray:
        return bytearray(5_000_000)

    async def first(request: Request) -> Response:
        services.append(asyncio.create_task(serve_all()))
        own = bytearray(1_000_000)
        await asyncio.wait(services)
        return PlainTextResponse(str(len(own)))

    app = MemoryMiddleware(Starlette(routes=[Route("/first", first)]), inherited=inherited)
    await _get(app, "/first")

    assert (_accounts()["/first"].peak_bytes > 5_000_000) == charged
    assert 1_000_000 < _accounts()["/first"].peak_bytes < 6_200_000


async def test_failing_request_raises_and_is_counted_as_failed() -> None:
    async def fail(request: Request) -> Response:
        raise KeyError("x")

    app = MemoryMiddleware(Starlette(routes=[Route("/fail", fail)]), meter="rss")
    with pytest.raises(KeyError):
        await _get(app, "/fail")
    (answer,) = await _get(app, "/fail", raise_app_exceptions=False)

    assert answer.status_code == 500
    assert _accounts()["/fail"].failed == 2


async def test_warning_names_the_route(caplog) -> None:
    async def big(request: Request) -> Response:
        return PlainTextResponse(str(len(bytearray(3_000_000))))

    events: list[Any] = []
    app = MemoryMiddleware(Starlette(routes=[Route("/big/{id}", big)]), warn="1 MB", meter="tracemalloc")
    with subscribe(events.append), caplog.at_level(logging.WARNING):
        await _get(app, "/big/7")

    assert [event.name for event in events if isinstance(event, HighUsage)] == ["/big/{id}"]
    assert "High peak: /big/{id}" in caplog.text


async def test_request_over_its_budget_raises_with_its_route() -> None:
    async def big(request: Request) -> Response:
        block = bytearray(3_000_000)
        await asyncio.sleep(0)
        return PlainTextResponse(str(len(block)))

    app = MemoryMiddleware(Starlette(routes=[Route("/big/{id}", big)]), budget="1 MB", meter="tracemalloc")
    with pytest.raises(BudgetExceeded, match=r"/big/\{id\} used"):
        await _get(app, "/big/7")
    (answer,) = await _get(app, "/big/7", raise_app_exceptions=False)

    assert answer.status_code == 500


class ScriptedMonitor:
    level = Level.NORMAL


async def test_requests_are_refused_only_while_memory_is_critical() -> None:
    monitor = ScriptedMonitor()
    app = MemoryMiddleware(_starlette(), monitor=monitor, retry_after=7, exempt=("/orders/1",), meter="rss")

    codes = []
    for monitor.level in (Level.WARNING, Level.CRITICAL, Level.NORMAL):
        answers = await _get(app, "/orders/7", "/orders/1")
        codes.append([answer.status_code for answer in answers])
        if monitor.level is Level.CRITICAL:
            refused = answers[0]

    assert codes == [[200, 200], [503, 200], [200, 200]]
    assert refused.headers["retry-after"] == "7"
    assert int(refused.headers["content-length"]) == len(refused.content)
    assert app.statistics().refused == 1


async def test_websocket_and_lifespan_pass_unchanged() -> None:
    seen: list[tuple[str, object]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], active_owner()))

    monitor = ScriptedMonitor()
    monitor.level = Level.CRITICAL
    middleware = MemoryMiddleware(app, monitor=monitor)
    for kind in ("websocket", "lifespan"):
        await middleware({"type": kind}, None, None)  # type: ignore[arg-type]  # both are only passed on

    assert seen == [("websocket", None), ("lifespan", None)]
    assert middleware.statistics().requests == 0


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
async def test_scope_receive_and_send_are_passed_on_as_they_are(kind: str) -> None:
    passed: list[object] = []

    async def app(*connection: Any) -> None:
        passed.extend(connection)

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    scope = {"type": kind, "path": "/", "state": {}}
    before = dict(scope)
    await MemoryMiddleware(app, meter="rss")(scope, receive, send)

    assert [found is given for found, given in zip(passed, (scope, receive, send), strict=True)] == [True] * 3
    assert scope == before
    assert type(scope) is dict


@pytest.mark.parametrize("make_app", [_starlette, _fastapi])
@pytest.mark.parametrize("path", ["/orders/7", "/tenants/acme/orders/7", "/nowhere"])
async def test_middleware_outside_sees_what_routers_write(make_app: Callable[[], Any], path: str) -> None:
    async def write_user(request: Request, call_next: Callable[[Request], Any]) -> Response:
        request.scope["user"] = "ann"
        request.state.tenant = "acme"
        return await call_next(request)

    seen: list[dict[str, str]] = []

    def outer(app: Any) -> Any:
        async def look(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            seen.append({key: re.sub("0x[0-9a-f]+", "", repr(scope[key])) for key in scope if key != "client"})

        return look

    for wrap in (lambda app: app, MemoryMiddleware):
        inner = make_app()
        inner.add_middleware(BaseHTTPMiddleware, dispatch=write_user)
        await _get(outer(wrap(inner)), path)

    assert seen[1] == seen[0]
    assert seen[0]["user"] == "'ann'"
    assert ("route" in seen[0]) == (path != "/nowhere")


async def test_task_factory_is_left_alone_where_contexts_are_followed() -> None:
    meter = choose_meter()
    assert not (meter.tracks_owners and not meter.follows_contexts)  # or tasks have to be tracked

    await _get(MemoryMiddleware(_starlette()), "/orders/7")

    assert asyncio.get_running_loop().get_task_factory() is None


async def test_starlette_lifespan_runs() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        steps.append("up")
        yield
        steps.append("down")

    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app = MemoryMiddleware(Starlette(lifespan=lifespan))
    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    assert steps == ["up", "down"]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_custom_label_is_truncated_escaped_and_may_fail(caplog) -> None:
    app = MemoryMiddleware(_ok_app, label=lambda scope: scope["path"] + "\n" + "x" * 1000, meter="rss")
    broken = MemoryMiddleware(_ok_app, label=lambda scope: scope["missing"], meter="rss")

    await _get(app, "/a")
    await _get(broken, "/b", "/c")

    name = next(name for name in _accounts() if name != UNMATCHED)
    assert name.startswith("/a\\nxx")
    assert len(name) <= 202
    assert _accounts()[UNMATCHED].started == 2
    assert len([line for line in caplog.messages if "failed" in line]) == 1


async def test_client_that_disconnects_cancels_the_request() -> None:
    started = asyncio.Event()

    async def wait(request: Request) -> Response:
        started.set()
        await asyncio.sleep(3600)
        return PlainTextResponse("never")

    task = asyncio.create_task(_get(MemoryMiddleware(Starlette(routes=[Route("/wait", wait)])), "/wait"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert _accounts()["/wait"].active == 0
    assert _accounts()["/wait"].failed == 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("app", 3),
        ("warn", "much"),
        ("budget", -1),
        ("monitor", object()),
        ("retry_after", -1),
        ("retry_after", float("nan")),
        ("exempt", "/health"),
        ("label", "route"),
        ("meter", "best"),
        ("inherited", "no"),
    ],
)
def test_invalid_argument_raises_and_is_named(argument: str, value: object) -> None:
    arguments = {"app": _ok_app, argument: value}

    with pytest.raises(ConfigError, match=argument):
        MemoryMiddleware(arguments.pop("app"), **arguments)
