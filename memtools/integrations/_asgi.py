"""An account for each route of a web service, for every ASGI server and framework: `MemoryMiddleware`.

Covers: one scope per request, streamed bodies and background tasks included; turning requests away while memory is
critical. Leaves to others: which route it is (`_routes`), counting (`memtools.ledger`).
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any, Final, Protocol, TypeAlias

from memtools.errors import ConfigError
from memtools.integrations._following import follow_tasks_of_requests, serves_request
from memtools.integrations._routes import UNMATCHED, Label, RoutedScope, route_label
from memtools.ledger import Owner, active_owner, choose_meter, rename_owner, usage_of
from memtools.readings import Level
from memtools.records import record
from memtools.scopes import Plan, follower, judge, make_budget, parse_limit
from memtools.units import parse_seconds

# ASGI 3.0. Any: messages and scopes hold what server, framework and application agree upon.
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_BUSY: Final = b"Memory is short here at the moment; try again later.\n"

_log = logging.getLogger("memtools.integrations")


class HasLevel(Protocol):
    """Knows how short memory is, as a `MemoryMonitor` does."""

    @property
    def level(self) -> Level:
        """How short memory is."""
        ...


@record
class MiddlewareStatistics:
    """What came through a middleware.

    Attributes:
        requests: HTTP requests that were let through and have ended.
        unmatched: those of them for which no route was found.
        refused: HTTP requests that were turned away with 503.
    """

    requests: int
    unmatched: int
    refused: int


class MemoryMiddleware:
    """Charges each HTTP request to the route that it takes, as a scope of that name.

    ```python
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    app = MemoryMiddleware(app, warn="50 MiB")  # or app.add_middleware(MemoryMiddleware, warn="50 MiB")
    ```

    The name is the template of the route, as in `/orders/{id}`, and `<unmatched>` where there is none: nothing that a
    client sends becomes a name. It is known once the router has run; what is opened before that, by another middleware,
    stands below `<unmatched>`. Bodies that are streamed, and background tasks that the framework runs after the answer,
    are charged to the request, in whichever task they run; not so what runs in a framework's threads, as the plain
    functions of FastAPI do: those are charged when they are decorated. WebSockets and the lifespan pass untouched.

    With a meter that follows, the first request sets a task factory on its loop, for tasks that requests start.

    Args:
        app: the application.
        warn: a higher peak of one request is logged as "High memory increase"; a size or a share of the limit.
        budget: the highest peak that one request may have; `BudgetExceeded` is then raised in it, which servers answer
            with 500.
        monitor: turn requests away with 503 while the level of this is `CRITICAL`; a `MemoryMonitor`, or anything
            with a `level`.
        retry_after: what the 503 tells clients to wait, in seconds.
        spare: paths that are never turned away, as `"/health"`; exactly as the request has them.
        label: gives the name for a scope of a framework that keeps its routes elsewhere; None for no route.
        meter: who counts; see `memory_scope`.

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
        spare: Collection[str] = (),
        label: Label = route_label,
        meter: str | None = None,
    ) -> None:
        if not callable(app):
            raise ConfigError("app", app, "an ASGI application")
        if not callable(label):
            raise ConfigError("label", label, "a callable that takes the scope of a request")
        if isinstance(spare, str):
            raise ConfigError("spare", spare, "a collection of paths such as ('/health',)")
        if monitor is not None and not hasattr(monitor, "level"):
            raise ConfigError("monitor", monitor, "a MemoryMonitor, or another object with a level")
        self._app = app
        self._label = label
        self._monitor = monitor
        self._retry_after = str(max(1, round(parse_seconds(retry_after, name="retry_after")))).encode()
        self._spare = frozenset(spare)
        self._warn_bytes = None if warn is None else parse_limit(warn, name="warn")
        self._plan = Plan(
            UNMATCHED,
            "scope",
            choose_meter(meter),
            None if budget is None else make_budget(budget),
            on_end=self._judge if warn is not None or budget is not None else None,
        )
        self._follow = follower(self._plan, self._serve)
        self._has_complained = False
        self._requests = self._unmatched = self._refused = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_full() and scope.get("path") not in self._spare:
            self._refused += 1
            await self._refuse(send)
        else:
            await self._follow(self._serve(scope, receive, send))

    def statistics(self) -> MiddlewareStatistics:
        """Return what came through so far."""
        return MiddlewareStatistics(self._requests, self._unmatched, self._refused)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        owner = active_owner()
        before, follows = serves_request.get(), self._plan.meter.follows
        if before is not follows:
            serves_request.set(follows)
        if follows:
            follow_tasks_of_requests()
        routed = RoutedScope(scope, lambda found: self._rename(owner, found))
        try:
            await self._app(routed, receive, send)
        finally:
            if before is not follows:
                serves_request.set(before)
            if owner is not None and owner.name == UNMATCHED:
                self._rename(owner, routed)
            self._requests += 1
            self._unmatched += owner is None or owner.name == UNMATCHED

    def _rename(self, owner: Owner | None, scope: Mapping[str, Any]) -> None:
        try:
            label = self._label(scope)
        except Exception:
            if not self._has_complained:
                self._has_complained = True
                _log.exception("label %r failed; requests that it fails for count as %s", self._label, UNMATCHED)
            return
        if owner is not None and label:
            rename_owner(owner, label)

    def _judge(self, owner: Owner, error: BaseException | None) -> None:
        judge(owner, usage_of(owner), warn_bytes=self._warn_bytes, failed=error is not None)

    def _is_full(self) -> bool:
        return self._monitor is not None and self._monitor.level >= Level.CRITICAL

    async def _refuse(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(_BUSY)).encode()),
            (b"retry-after", self._retry_after),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": _BUSY})
