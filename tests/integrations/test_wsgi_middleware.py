"""WSGIMemoryMiddleware in applications of Flask, in bare ones, and behind servers of the standard library."""

import asyncio
import io
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from flask import Blueprint, Flask, send_file, stream_with_context
from starlette.applications import Starlette
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from memtools import ConfigError, Level, memory_scope
from memtools.errors import BudgetExceeded
from memtools.integrations import MemoryMiddleware, MiddlewareStatistics
from memtools.integrations.wsgi import WSGIMemoryMiddleware
from memtools.ledger import AccountStatistics, active_owner, forget_accounts, native_reason, open_owners, statistics

MB = 10**6
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    yield
    forget_accounts()


def accounts() -> dict[str, AccountStatistics]:
    return {account.name: account for account in statistics().accounts}


def flask_app() -> Flask:
    app, shop = Flask("shop"), Blueprint("shop", "shop", url_prefix="/shop")
    kept: list[bytes] = []

    @app.get("/orders/<int:number>")
    def order(number: int) -> str:
        return f"order {number}"

    @shop.get("/items/<name>")
    def item(name: str) -> str:
        return name

    @app.get("/keep")
    def keep() -> str:
        kept.append(bytes(MB))
        return "kept"

    @app.get("/stream")
    def stream() -> Any:
        def pieces() -> Iterator[bytes]:
            for _ in range(3):
                kept.append(bytes(MB))
                yield b"piece"

        return app.response_class(stream_with_context(pieces()))

    @app.get("/file")
    def file() -> Any:
        return send_file(io.BytesIO(b"file"), mimetype="text/plain")

    @app.get("/fails")
    def fails() -> str:
        raise ZeroDivisionError

    app.register_blueprint(shop)
    return app


def fetch(client: Client, path: str) -> bytes:
    with client.get(path) as answer:
        return bytes(answer.data)


def call(app: Any, path: str = "/") -> tuple[Any, list[Any]]:
    """Return the body of a bare application, and the arguments of `start_response`."""
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start_response(*args: Any) -> Callable[[bytes], object]:
        started.extend(args)
        return lambda _: None

    return app(environ, start_response), started


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/orders/7", "/orders/<int:number>"),
        ("/shop/items/a", "/shop/items/<name>"),
        ("/nowhere", "<unmatched>"),
        ("/static/missing.css", "/static/<path:filename>"),
        ("/fails", "/fails"),
    ],
)
def test_request_of_flask_is_counted_at_its_route(path: str, name: str) -> None:
    app = flask_app()
    app.wsgi_app = WSGIMemoryMiddleware(app.wsgi_app)  # type: ignore[method-assign]

    app.test_client().get(path).close()

    assert list(accounts()) == [name]
    assert accounts()[name].kind == "scope"
    assert not open_owners()


def test_mounted_application_has_its_path_in_front() -> None:
    app = WSGIMemoryMiddleware(DispatcherMiddleware(Flask("outer"), {"/api": flask_app()}))

    with Client(app).get("/api/orders/7") as answer:
        assert answer.text == "order 7"
    assert list(accounts()) == ["/api/orders/<int:number>"]


@needs_native
@pytest.mark.parametrize(("path", "kept"), [("/keep", MB), ("/stream", 3 * MB)])
def test_route_has_what_its_requests_keep(path: str, kept: int) -> None:
    app = flask_app()
    app.wsgi_app = WSGIMemoryMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    client = app.test_client()
    fetch(client, path)
    before = accounts()[path].live_bytes or 0

    for _ in range(20):
        fetch(client, path)

    assert (accounts()[path].live_bytes or 0) - before == pytest.approx(20 * kept, rel=0.02)


@needs_native
def test_what_the_server_does_between_pieces_is_not_charged() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        yield b"two"

    body, _ = call(WSGIMemoryMiddleware(app))
    of_server = []
    for _ in body:
        of_server.append(bytes(MB))
        assert active_owner() is None
    body.close()

    assert accounts()["<unmatched>"].mean_peak_bytes < MB / 2
    assert len(of_server) == 2


def test_scope_opened_while_streaming_is_below_the_request() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        with memory_scope("query"):
            yield b"one"
            yield b"two"

    body, _ = call(WSGIMemoryMiddleware(app))
    assert list(body) == [b"one", b"two"]
    body.close()

    assert [child.name for child in accounts()["<unmatched>"].children] == ["query"]


def test_complete_body_is_returned_as_it_is() -> None:
    pieces = [b"one"]

    assert call(WSGIMemoryMiddleware(lambda _environ, _start: pieces))[0] is pieces
    assert not open_owners()


def test_file_wrapper_of_the_server_is_returned_as_it_is() -> None:
    file = FileWrapper(io.BytesIO(b"file"))
    environ = {"wsgi.file_wrapper": FileWrapper}

    assert WSGIMemoryMiddleware(lambda _environ, _start: file)(environ, lambda *_: print) is file
    assert not open_owners()


def test_sized_body_keeps_its_length() -> None:
    class Pieces:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

    body, _ = call(WSGIMemoryMiddleware(lambda _environ, _start: Pieces()))

    assert len(body) == 1
    assert list(body) == [b"one"]
    body.close()


def test_body_is_closed_once_and_its_errors_pass() -> None:
    class Pieces:
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            raise ZeroDivisionError

        def close(self) -> None:
            self.closed += 1

    pieces = Pieces()
    body, _ = call(WSGIMemoryMiddleware(lambda _environ, _start: pieces))
    assert next(body) == b"one"
    with pytest.raises(ZeroDivisionError):
        next(body)
    body.close()
    body.close()

    assert pieces.closed == 1
    assert accounts()["<unmatched>"].failed == 1


def test_body_that_is_never_closed_ends_with_its_last_reference() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b"one"

    body, _ = call(WSGIMemoryMiddleware(app))
    next(body)
    del body

    assert not open_owners()
    assert active_owner() is None


@needs_native
def test_budget_stops_a_request_and_no_other() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(environ["PATH_INFO"] == "/large" and 8 * MB)]

    middleware = WSGIMemoryMiddleware(app, budget="2 MB", label=lambda environ: environ["PATH_INFO"])

    with pytest.raises(BudgetExceeded, match="/large"):
        call(middleware, "/large")
    assert call(middleware, "/small")[0] == [b""]


@needs_native
def test_budget_stops_a_streamed_body_at_its_next_piece() -> None:
    held = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(10):
            held.append(bytes(MB))
            yield b"piece"

    body, _ = call(WSGIMemoryMiddleware(app, budget="3 MB"))

    with pytest.raises(BudgetExceeded):
        list(body)
    body.close()
    assert len(held) in (3, 4)


def test_high_peak_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        bytearray(8 * MB)
        return []

    with caplog.at_level(logging.WARNING, "memtools"):
        call(WSGIMemoryMiddleware(app, warn="2 MB", label=lambda _: "/report"))

    assert "/report" in caplog.text


def test_requests_are_refused_while_memory_is_critical() -> None:
    monitor = SimpleNamespace(level=Level.CRITICAL)
    middleware = WSGIMemoryMiddleware(lambda _environ, _start: [b"served"], monitor=monitor, exempt=("/health",))

    body, (status, headers) = call(middleware)
    assert (status, dict(headers)["Retry-After"]) == ("503 Service Unavailable", "5")
    assert b"Memory is short" in b"".join(body)
    assert call(middleware, "/health")[0] == [b"served"]
    monitor.level = Level.WARNING
    assert call(middleware)[0] == [b"served"]
    assert middleware.statistics() == MiddlewareStatistics(requests=2, unmatched=2, refused=1)


def test_label_that_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def label(_: Any) -> str:
        raise LookupError

    middleware = WSGIMemoryMiddleware(lambda _environ, _start: [], label=label)
    call(middleware)
    call(middleware)

    assert caplog.text.count("failed; the requests") == 1
    assert accounts()["<unmatched>"].started == 2


def test_wrong_kind_of_application_is_told_which_to_use() -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None: ...

    for app in (asgi, Starlette()):
        with pytest.raises(ConfigError, match="for ASGI there is MemoryMiddleware"):
            WSGIMemoryMiddleware(app)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"for WSGI there is memtools\.integrations\.wsgi"):
        MemoryMiddleware(Flask("shop"))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"app": 7}, {"label": "x"}, {"exempt": "/x"}, {"monitor": 7}, {"warn": "x"}])
def test_argument_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WSGIMemoryMiddleware(**{"app": lambda _environ, _start: [], **wrong})


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # the name of the base class


def test_protocol_is_kept_behind_a_real_server() -> None:
    app = flask_app()
    app.wsgi_app = validator(WSGIMemoryMiddleware(validator(app.wsgi_app)))  # type: ignore[method-assign]
    with make_server("127.0.0.1", 0, app, handler_class=QuietHandler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            answers = [
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=30).read()
                for path in ("/orders/7", "/stream", "/file")
            ]
        finally:
            server.shutdown()
            thread.join()

    assert answers == [b"order 7", b"piece" * 3, b"file"]
    assert set(accounts()) == {"/orders/<int:number>", "/stream", "/file"}


async def test_application_in_a_thread_of_asgi_is_charged_to_both() -> None:
    # As under a2wsgi: an ASGI server that runs a WSGI application in a thread, with the context of the request.
    middleware = WSGIMemoryMiddleware(lambda _environ, _start: [b"served"])

    with memory_scope("outer"):
        body, _ = await asyncio.to_thread(call, middleware)

    assert body == [b"served"]
    assert [child.name for child in accounts()["outer"].children] == ["<unmatched>"]
