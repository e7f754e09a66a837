"""ASGI middleware that charges each request to its route."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeAlias, cast
from weakref import WeakSet

from memtools._records import record
from memtools.errors import ConfigError
from memtools.ledger import Owner, active_owner, choose_meter
from memtools.ledger._coroutines import TrackedCoroutine, is_trackable
from memtools.ledger._ledger import current_usage, rename_owner
from memtools.readings import Level
from memtools.scopes._budgets import check_usage, make_budget, parse_budget
from memtools.scopes._calls import CallOptions, coroutine_tracker
from memtools.units import parse_seconds

UNMATCHED: Final = "<unmatched>"

# ASGI 3.0. Any: messages and scopes contain what server, framework and application agree upon.
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Label: TypeAlias = Callable[[Mapping[str, Any]], str | None]

_REFUSAL: Final = b"Memory is short here at the moment; try again later.\n"

_log = logging.getLogger("memtools.integrations")

_in_request: Final[ContextVar[bool]] = ContextVar("memtools_in_request", default=False)
_loops_with_factory: "WeakSet[asyncio.AbstractEventLoop]" = WeakSet()


class HasLevel(Protocol):
    """An object with a memory level, such as a `MemoryMonitor`."""

    @property
    def level(self) -> Level:
        """How short memory is."""
        ...


@record
class MiddlewareStatistics:
    """The requests of a middleware.

    Attributes:
        requests: HTTP requests that were passed on and have ended.
        unmatched: those of them for which no route was found.
        refused: HTTP requests that were refused with 503.
    """

    requests: int
    unmatched: int
    refused: int


class _ScopeWithRoute(dict[str, Any]):
    """The scope of one request, which notices that a router writes into it.

    Routers of Starlette and FastAPI write `route`, `root_path` and `path_params` into the scope as they descend. A
    mounted application gets its own path as part of `root_path`, with the values of the request in it: those are
    replaced by the names of the parameters here, or each tenant would be a name of its own.

    Args:
        scope: the scope as the server made it.
        on_routed: called after each such write.

    Attributes:
        prefix: what stands before the path of a route: the server's `root_path`, and the templates of mounts.
        is_inside_mount: whether a mounted application was entered, and has not found a route of its own yet.
    """

    __slots__ = ("_on_routed", "is_inside_mount", "prefix")

    def __init__(self, scope: Mapping[str, Any], on_routed: "Callable[[_ScopeWithRoute], object]") -> None:
        super().__init__(scope)
        self._on_routed = on_routed
        self.prefix: str = str(scope.get("root_path", ""))
        self.is_inside_mount: bool = False

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == "root_path":
            self.prefix = str(value)
        elif key == "route":
            self.is_inside_mount = False
            self._on_routed(self)

    def update(self, *args: Any, **named: Any) -> None:
        """Apply the changes of a router, and report them."""
        changes: dict[str, Any] = dict(*args, **named)
        if "root_path" in changes:
            self.prefix += self._mount_template(changes)
            self.is_inside_mount = True
        if "route" in changes:
            self.is_inside_mount = False
        super().update(changes)
        if "root_path" in changes or "route" in changes:
            self._on_routed(self)

    def _mount_template(self, changes: Mapping[str, Any]) -> str:
        known: Mapping[str, Any] = self.get("path_params") or {}
        params: Mapping[str, Any] = changes.get("path_params") or {}
        piece = str(changes["root_path"]).removeprefix(str(self.get("root_path", "")))
        return _template(piece, {name: value for name, value in params.items() if name not in known})


def route_template(scope: Mapping[str, Any]) -> str | None:
    """Return the template of the route that a request has taken, with the root path in front; None where none is known.

    For the scopes of Starlette, FastAPI, and any framework that writes an object with a `path` into `scope["route"]`.
    """
    prefix = scope.prefix if isinstance(scope, _ScopeWithRoute) else str(scope.get("root_path", ""))
    if isinstance(scope, _ScopeWithRoute) and scope.is_inside_mount:
        return prefix
    route = scope.get("route")
    if route is None:
        return None
    path = _included_path(scope, route) or getattr(route, "path", None)
    return prefix.rstrip("/") + path if isinstance(path, str) else None


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
    named = {str(value): name for name, value in params.items()}
    segments = piece.split("/")
    if not named.keys() <= set(segments):
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


class MemoryMiddleware:
    """Charges each HTTP request to the route that it takes, as a scope of that name.

    ```python
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    app = MemoryMiddleware(app, warn="50 MiB")  # or app.add_middleware(MemoryMiddleware, warn="50 MiB")
    ```

    The name is the template of the route, as in `/orders/{id}`, and `<unmatched>` where there is none: nothing that a
    client sends becomes a name. It is known once the router has run; a scope that another middleware opens before that
    is below `<unmatched>`. Streamed bodies, and background tasks that the framework runs after the response, are
    charged to the request, in any task. What runs in a framework's threads, as the plain functions of FastAPI do, is
    not; decorate those functions. WebSockets and the lifespan pass unchanged.

    With the native meter and tracemalloc, the first request sets a task factory on its loop, for the tasks that
    requests start.

    Args:
        app: the application.
        warn: a higher peak of one request is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one request may have; `BudgetExceeded` is then raised in it, which servers answer
            with 500.
        monitor: requests are refused with 503 while its level is `CRITICAL`; a `MemoryMonitor`, or another object with
            a `level`.
        retry_after: the `Retry-After` of the 503, in seconds.
        exempt: paths that are never refused, as `"/health"`; exactly as the request has them.
        label: returns the name for a scope of a framework that keeps its routes elsewhere; None for no route.
        meter: what counts; see `memory_scope`.

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
    ) -> None:
        if not callable(app):
            raise ConfigError("app", app, "an ASGI application")
        if not callable(label):
            raise ConfigError("label", label, "a callable that takes the scope of a request")
        if isinstance(exempt, str):
            raise ConfigError("exempt", exempt, "a collection of paths such as ('/health',)")
        if monitor is not None and not hasattr(monitor, "level"):
            raise ConfigError("monitor", monitor, "a MemoryMonitor, or another object with a level")
        self._app = app
        self._label = label
        self._monitor = monitor
        self._retry_after = str(max(1, round(parse_seconds(retry_after, name="retry_after")))).encode()
        self._exempt = frozenset(exempt)
        self._warn_bytes = None if warn is None else parse_budget(warn, name="warn")
        self._options = CallOptions(
            UNMATCHED,
            "scope",
            choose_meter(meter),
            None if budget is None else make_budget(budget),
            on_end=self._check_usage if warn is not None or budget is not None else None,
        )
        self._track = coroutine_tracker(self._options, self._serve)
        self._label_error_logged = False
        self._requests = self._unmatched = self._refused = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_full() and scope.get("path") not in self._exempt:
            self._refused += 1
            await self._refuse(send)
        else:
            await self._track(self._serve(scope, receive, send))

    def statistics(self) -> MiddlewareStatistics:
        """Return the counts so far."""
        return MiddlewareStatistics(self._requests, self._unmatched, self._refused)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        owner = active_owner()
        before, tracks = _in_request.get(), self._options.meter.tracks_owners
        if before is not tracks:
            _in_request.set(tracks)
        if tracks:
            _track_request_tasks()
        routed = _ScopeWithRoute(scope, lambda found: self._rename(owner, found))
        try:
            await self._app(routed, receive, send)
        finally:
            if before is not tracks:
                _in_request.set(before)
            if owner is not None and owner.name == UNMATCHED:
                self._rename(owner, routed)
            self._requests += 1
            self._unmatched += owner is None or owner.name == UNMATCHED

    def _rename(self, owner: Owner | None, scope: Mapping[str, Any]) -> None:
        try:
            label = self._label(scope)
        except Exception:
            if not self._label_error_logged:
                self._label_error_logged = True
                _log.exception(
                    "label %r failed; the requests for which it fails are counted as %s", self._label, UNMATCHED
                )
            return
        if owner is not None and label:
            rename_owner(owner, label)

    def _check_usage(self, owner: Owner, error: BaseException | None) -> None:
        check_usage(owner, current_usage(owner), warn_bytes=self._warn_bytes, failed=error is not None)

    def _is_full(self) -> bool:
        return self._monitor is not None and self._monitor.level >= Level.CRITICAL

    async def _refuse(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(_REFUSAL)).encode()),
            (b"retry-after", self._retry_after),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})
