"""ASGI middleware that has workers of uvicorn replaced when they have grown."""

import asyncio
import contextvars
import logging
import signal
from collections.abc import MutableMapping
from types import CoroutineType, FrameType
from typing import Any, Final, Self

from memtools._records import record
from memtools.errors import ConfigError, MemtoolsError
from memtools.integrations._recycling import (
    ASK_AGAIN_S,
    DEFAULT_JITTER,
    DEFAULT_WARM_UP,
    INTERVAL_S,
    RecyclingOptions,
    WorkerSize,
    WorkerTurns,
    make_options,
    path_for_siblings,
)
from memtools.integrations._requests import HasLevel
from memtools.integrations.asgi import Application, Message, Receive, Send

try:
    from uvicorn import Server
except ImportError as _missing:
    raise ImportError("memtools.integrations.uvicorn needs uvicorn: pip install uvicorn") from _missing

_log = logging.getLogger("uvicorn.error")  # that of the server: shown by default, and its name is no level

_POLL_S: Final = 0.05
_CLOSE: Final = (b"connection", b"close")
# What a connection may be idle for, at most, while a worker ends: a client's pool may send its next request just then.
_LONGEST_LINGER_S: Final = 10.0
_UNDER_GUNICORN: Final = "the hook of memtools.integrations.gunicorn replaces the workers of gunicorn"


@record
class _Serving:
    """A middleware at work: the turns of its worker, and the task that looks at the size."""

    turns: WorkerTurns | None
    task: "asyncio.Task[None]"


class RecyclingMiddleware:
    """Has a worker of uvicorn replaced when it has grown, without failing a request.

    ```python
    from memtools.integrations.uvicorn import RecyclingMiddleware

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    app = RecyclingMiddleware(app, growth="200 MiB")  # or app.add_middleware(RecyclingMiddleware, growth="200 MiB")
    ```

    A worker that has grown waits for its turn: only one of the workers of `uvicorn --workers` goes at a time, and only
    while all the others serve. Then it accepts no further connection, finishes its requests, answers what comes on open
    connections with `Connection: close`, and ends; the parent starts another. WebSockets are closed with 1012, service
    restart. A single process ends with exit code 0, and its supervisor has to start it again (systemd:
    `Restart=always`); until then its port is closed, unless the supervisor keeps the socket (`uvicorn --fd`).

    The reason is logged as a warning of `uvicorn.error`. Under another server the middleware logs that once, and does
    nothing. What it looks at is the private resident memory, four times a second: 0.1 ms each.

    Args:
        app: the application.
        growth, limit, monitor, warm_up, jitter: as in `memtools.integrations.gunicorn.recycle_workers`.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    def __init__(
        self,
        app: Application,
        *,
        growth: int | str,
        limit: int | str | None = None,
        monitor: HasLevel | None = None,
        warm_up: int = DEFAULT_WARM_UP,
        jitter: float = DEFAULT_JITTER,
    ) -> None:
        if not callable(app):
            raise ConfigError("app", app, "an ASGI application")
        if hasattr(app, "wsgi_app"):
            raise ConfigError("app", app, "an ASGI application; for WSGI there is memtools.integrations.gunicorn")
        self._app = app
        self._options = make_options(growth, limit, monitor, warm_up, jitter)
        self._turns_of_parent: WorkerTurns | None = None
        self._serving: _Serving | None = None
        self._is_started = self._is_draining = False
        self._requests = 0

    @classmethod
    def of_worker(cls, app: Application, options: RecyclingOptions, turns: WorkerTurns) -> Self:
        """Return the middleware of a worker of another server, which has checked the options and made the turns."""
        middleware = cls(app, growth=options.growth_bytes)
        middleware._options = options
        middleware._turns_of_parent = turns
        return middleware

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(scope, receive, send)
            return
        self._start()
        if kind == "http":
            self._requests += 1
            if self._is_draining:
                send = _closing(send)
        await self._app(scope, receive, send)

    async def _serve_lifespan(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def send_and_follow(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._start()
            elif message["type"].startswith("lifespan.shutdown."):
                self._end()  # the loop may end with this message
            await send(message)

        try:
            await self._app(scope, receive, send_and_follow)
        finally:
            self._end()  # an application without a lifespan raises at once, and serves after that

    def _end(self) -> None:
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.task.cancel()
            if serving.turns is not None:
                serving.turns.leave()

    def _start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        server = _find_server()
        if server is None:
            _log.warning("RecyclingMiddleware replaces no worker: no uvicorn serves here; %s", _advice())
            return
        try:
            turns = self._turns_of_parent or _turns_of_siblings(server)
        except (OSError, MemtoolsError) as error:
            _log.warning("RecyclingMiddleware replaces no worker: %s", error)
            return
        # In an empty context: it belongs to no request.
        task = asyncio.get_running_loop().create_task(
            self._watch(server, turns), name="memtools-recycling", context=contextvars.Context()
        )
        self._serving = _Serving(turns, task)

    async def _watch(self, server: Server, turns: WorkerTurns | None) -> None:
        try:
            await self._wait_for_turn(server, turns)
            await self._drain(server, has_others=turns is not None)
        except Exception:
            self._is_draining = False
            _log.exception("RecyclingMiddleware replaces no worker")
            return
        while not await self._ask_to_end(server):
            _log.warning(
                "the worker was to end %.0f s ago: it is asked again; %d connections are open "
                "(uvicorn --timeout-graceful-shutdown bounds how long it waits)",
                ASK_AGAIN_S,
                len(server.server_state.connections),
            )

    async def _ask_to_end(self, server: Server) -> bool:
        """Ask the server to end; return whether it has ended in time, but for its lifespan."""
        server.should_exit = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_AGAIN_S
        while loop.time() < deadline:
            await asyncio.sleep(INTERVAL_S)
            state = server.server_state
            if not (state.connections or state.tasks or any(listener.is_serving() for listener in server.servers)):
                return True
        return False

    async def _wait_for_turn(self, server: Server, turns: WorkerTurns | None) -> None:
        while not server.started:  # noqa: ASYNC110  # its lifespan has begun, and it does not accept yet
            await asyncio.sleep(_POLL_S)
        if turns is not None:
            turns.join()
        size = WorkerSize(self._options)
        while True:
            await asyncio.sleep(INTERVAL_S)
            reason = size.reason_to_recycle(self._requests)
            if reason is not None and (turns is None or turns.try_take(size.grown_bytes)):
                _log.warning("%s", reason)
                return

    async def _drain(self, server: Server, *, has_others: bool) -> None:
        """Wait until the connections that are open now have had their last answer, or were idle long enough."""
        self._is_draining = True
        if has_others:
            for listener in server.servers:
                listener.close()
        loop = asyncio.get_running_loop()
        linger = min(server.config.timeout_keep_alive, _LONGEST_LINGER_S) + 2 * INTERVAL_S
        deadline = loop.time() + linger
        # What the loop has accepted already becomes a connection in its next turns.
        await asyncio.sleep(_POLL_S)
        while loop.time() < deadline and server.server_state.connections:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(_POLL_S)


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [header for header in message.get("headers", ()) if bytes(header[0]).lower() != _CLOSE[0]]
            message = {**message, "headers": [*headers, _CLOSE]}
        await send(message)

    return send_and_close


def _turns_of_siblings(server: Server) -> WorkerTurns | None:
    workers = server.config.workers
    return WorkerTurns(workers, path=path_for_siblings()) if workers > 1 else None


def _find_server() -> Server | None:
    """Return the server that runs on this loop: the receiver of the signals that end it, or found in a task."""
    for number in (signal.SIGTERM, signal.SIGINT):
        owner: object = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(owner, Server):
            return owner
    for task in asyncio.all_tasks():
        step: Any = task.get_coro()  # Any: what a coroutine awaits has no common type
        while isinstance(step, CoroutineType):
            frame: FrameType | None = step.cr_frame
            if frame is not None and frame.f_code.co_name in ("serve", "_serve"):
                server = frame.f_locals.get("self")
                if isinstance(server, Server):
                    return server
            step = step.cr_await
    return None


def _advice() -> str:
    owner: object = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    is_gunicorn = type(owner).__module__.partition(".")[0] == "gunicorn"
    return _UNDER_GUNICORN if is_gunicorn else "it works where uvicorn runs the application"
