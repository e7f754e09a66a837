"""ASGI middleware that charges each request to its route."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, cast
from weakref import WeakSet

from memtools.errors import ConfigError
from memtools.integrations._requests import REFUSAL, HasLevel, Label, RequestMiddleware, refuse_applications_of_others
from memtools.ledger import active_owner
from memtools.ledger._context import current_context
from memtools.ledger._coroutines import TrackedCoroutine, is_trackable
from memtools.ledger._ledger import look_up_name, name_late
from memtools.scopes._calls import coroutine_tracker

# ASGI 3.0. Any: messages and scopes contain what server, framework and application agree upon.
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_in_request: Final[ContextVar[bool]] = ContextVar("memtools_in_request", default=False)
_loops_with_factory: "WeakSet[asyncio.AbstractEventLoop]" = WeakSet()


def route_template(scope: Mapping[str, Any]) -> str | None:
    """Return the template of the route that a request has taken, with the root path in front; None where none is known.

    For the scopes of Starlette, FastAPI, and any framework that writes an object with a `path` into `scope["route"]`.
    The routers of Starlette and FastAPI write `route`, `root_path` and `path_params` into the scope as they descend. A
    mounted application gets its own path as part of `root_path`, with the values of the request in it: those are
    replaced by the names of the parameters here, or each tenant would be a name of its own.
    """
    route = scope.get("route")
    if route is None or _is_mount(route):
        return _prefix(scope, None) if "app_root_path" in scope else None
    path = _included_path(scope, route) or getattr(route, "path", None)
    return _prefix(scope, route).rstrip("/") + path if isinstance(path, str) else None


def is_routed(scope: Mapping[str, Any]) -> bool:
    """Return whether no router will write another route into the scope."""
    route = scope.get("route")
    return route is not None and not _is_mount(route)


def _is_mount(route: object) -> bool:
    # An application is mounted, an endpoint is routed to.
    return hasattr(route, "app") and not hasattr(route, "endpoint")


def _prefix(scope: Mapping[str, Any], route: object) -> str:
    """Return what stands before the path of a route: the server's `root_path`, and the templates of mounts."""
    root_path = str(scope.get("root_path", ""))
    if not root_path:
        return root_path
    server_path = str(scope.get("app_root_path", root_path))  # as it was before the first mount
    if root_path == getattr(scope.get("app"), "root_path", None):
        return root_path  # that of an application of FastAPI, which puts its own in the place of what is there
    of_route: object = getattr(route, "param_convertors", None)
    own: Mapping[str, Any] = cast("dict[str, Any]", of_route) if isinstance(of_route, dict) else {}
    params: Mapping[str, Any] = scope.get("path_params") or {}
    piece = root_path.removeprefix(server_path)
    if not piece:
        return root_path
    return root_path[: -len(piece)] + _template(piece, {name: params[name] for name in params if name not in own})


def _included_path(scope: Mapping[str, Any], route: object) -> str | None:
    # FastAPI 0.130 and later: a route of an included router has its own path only; the whole one is kept beside it.
    fastapi: object = scope.get("fastapi")
    if not isinstance(fastapi, dict):
        return None
    found: object = cast("dict[str, Any]", fastapi).get("effective_route_context")
    if found is None or getattr(found, "original_route", None) is not route:
        return None
    path = getattr(found, "path", None) or getattr(found, "path_format", None)
    return path if isinstance(path, str) else None


def _template(piece: str, params: Mapping[str, Any]) -> str:
    named = {str(value): name for name, value in params.items() if value != ""}
    segments = piece.split("/")
    if not named.keys() <= set(segments) or len(named) < len(params):
        # A value that was converted, or is more than a segment, has another form in the path.
        return "/{" + ",".join(params) + "}"
    return "/".join("{" + named[segment] + "}" if segment in named else segment for segment in segments)


def _track_request_tasks() -> None:
    """Track the tasks that are started on the running loop where `_in_request` is set.

    Frameworks stream bodies, and wait for clients that disconnect, in tasks of their own: Starlette does on every
    server that speaks ASGI before 2.4. Such a task inherits the current owner, but what it allocates is charged to that
    owner only if its steps are tracked. `memtools.track_tasks` does that for every task of a loop, with an account for
    each; the tasks of requests have none. A task factory is set, once for each loop, around the one that is there.
    """
    loop = asyncio._get_running_loop()  # None under a loop of another library, such as trio's
    if loop is None or loop in _loops_with_factory:
        return
    _loops_with_factory.add(loop)
    loop.set_task_factory(_TaskFactory(loop.get_task_factory()))


class _TaskFactory:
    """Makes tasks as before, those of requests with their coroutine tracked. Any: as in asyncio itself."""

    __slots__ = ("_previous",)

    def __init__(self, previous: Callable[..., Any] | None) -> None:
        self._previous = previous

    def __call__(self, loop: Any, coro: Any, **options: Any) -> Any:
        if _in_request.get() and is_trackable(coro):
            owner = active_owner()
            if owner is not None and owner.meter.tracks_owners:
                coro = TrackedCoroutine[Any](coro, owner.meter)
        if self._previous is not None:
            return self._previous(loop, coro, **options)
        return asyncio.Task(coro, loop=loop, **options)


class MemoryMiddleware(RequestMiddleware):
    """Charges each HTTP request to the route that it takes, as a scope of that name.

    ```python
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    app = MemoryMiddleware(app, warn="50 MiB")  # or app.add_middleware(MemoryMiddleware, warn="50 MiB")
    ```

    The name is the template of the route, as in `/orders/{id}`, and `<unmatched>` where there is none: nothing that a
    client sends becomes a name. It is looked up in the ASGI scope, which is passed on as it is, when it is needed: the
    scopes that another middleware opens before the router has run are below `<unmatched>`. Streamed bodies, background
    tasks that the framework runs after the response, and with the native meter what the framework runs in threads, as
    the plain functions of FastAPI, are charged to the request. WebSockets and the lifespan pass unchanged.

    With tracemalloc, the first request sets a task factory on its loop, for the tasks that requests start.

    Args:
        app: the application.
        warn: a higher peak of one request is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one request may have; `BudgetExceeded` is then raised in it, which servers answer
            with 500.
        monitor: requests are refused with 503 while its level is `CRITICAL`, but for the `min_flow` of a
            `MemoryMonitor`, and once it ends the process; a `MemoryMonitor`, or another object with a `level`.
        retry_after: the `Retry-After` of the 503, in seconds.
        exempt: paths that are never refused, as `"/health"`; exactly as the request has them.
        label: returns the name for a scope of a framework that keeps its routes elsewhere; None for no route. It is
            called more than once for a request, and in any of its threads.
        meter: what counts; see `memory_scope`.
        inherited: whether tasks, callbacks and threads that get a copy of the request's context belong to the request.
            False where endpoints start what outlives them and works for other requests, such as a connection pool that
            starts with its first use. Nothing but the coroutine of the request is charged to it then: not the plain
            functions of FastAPI, and not the endpoint where a `BaseHTTPMiddleware` further inside runs it in a task.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    def __init__(
        self,
        app: Application,
        *,
        warn: int | str | None = None,
        budget: int | str | None = None,
        monitor: HasLevel | None = None,
        retry_after: float = 5,
        exempt: Collection[str] = (),
        label: Label = route_template,
        meter: str | None = None,
        inherited: bool = True,
    ) -> None:
        if label is route_template:
            refuse_applications_of_others(app)
        if not callable(app):
            raise ConfigError("app", app, "an ASGI application")
        if hasattr(app, "wsgi_app"):
            raise ConfigError("app", app, "an ASGI application; for WSGI there is memtools.integrations.wsgi")
        if inherited not in (True, False):
            raise ConfigError("inherited", inherited, "True or False")
        super().__init__(
            app,
            warn=warn,
            budget=budget,
            monitor=monitor,
            retry_after=retry_after,
            exempt=exempt,
            label=label,
            meter=meter,
        )
        self._inherited = inherited
        meter_in_use = self._options.meter
        self._tracks_tasks = inherited and meter_in_use.tracks_owners and not meter_in_use.follows_contexts
        self._track = coroutine_tracker(self._options, self._serve)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_full(scope.get("path")):
            self._refused += 1
            await self._refuse(send)
        else:
            await self._track(self._serve(scope, receive, send))

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        owner = active_owner()
        if owner is not None:
            # The scope is the server's, and what stands outside reads it afterwards: the router writes into it unseen.
            name_late(owner, lambda: (self._find_name(scope), is_routed(scope)))
            if not self._inherited:
                owner.home_context = current_context()
        before, tracks = _in_request.get(), self._tracks_tasks
        if before is not tracks:
            _in_request.set(tracks)
        if tracks:
            _track_request_tasks()
        try:
            await self._app(scope, receive, send)
        finally:
            if before is not tracks:
                _in_request.set(before)
            if owner is not None:
                look_up_name(owner, is_last=True)
            self._count(owner)

    async def _refuse(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(REFUSAL)).encode()),
            (b"retry-after", self._retry_after.encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})
