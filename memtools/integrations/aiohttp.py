"""aiohttp middleware that charges each request to its route.

A file of its own because it imports aiohttp, and each adapter has the name of its library.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeAlias

from memtools.integrations._requests import REFUSAL, UNMATCHED, HasLevel, RequestMiddleware
from memtools.scopes import memory_scope

try:
    from aiohttp import web
except ImportError as _missing:
    raise ImportError("memtools.integrations.aiohttp needs aiohttp: pip install aiohttp") from _missing

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
# An answer that was raised comes out as one: a scope that it left by would count as failed.
_Answer: TypeAlias = web.StreamResponse | web.HTTPException
_ChargedHandler: TypeAlias = Callable[[web.Request, Handler], Awaitable[_Answer]]

_SERVER_ERROR: Final = 500


def aiohttp_route(request: web.Request) -> str | None:
    """Return the template of the route that the router has found, with those of sub-applications; None without one."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical or "/"


class MemoryMiddleware(RequestMiddleware):
    """Charges each request to the route that it takes, as a scope of that name.

    ```python
    from aiohttp import web
    from memtools.integrations.aiohttp import MemoryMiddleware

    app = web.Application(middlewares=[MemoryMiddleware(warn="50 MiB")])
    ```

    The first of the middlewares, so that what the others do is charged, too; that of the outer application suffices for
    sub-applications. The name is the template of the route, as in `/orders/{id}`, and `<unmatched>` where there is
    none. A body that the handler writes into a `StreamResponse` is charged; the file of a `FileResponse` is the
    server's to send. WebSockets pass unchanged.

    Args:
        warn: a higher peak of one request is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one request may have; `BudgetExceeded` is then raised in it, and the server
            answers with 500.
        monitor: requests are refused with 503 while its level is `CRITICAL`; a `MemoryMonitor`, or another object with
            a `level`.
        retry_after: the `Retry-After` of the 503, in seconds.
        exempt: paths that are never refused, as `"/health"`; exactly as the request has them.
        meter: what counts; see `memory_scope`.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    __middleware_version__ = 1  # what `web.middleware` marks a function with

    def __init__(
        self,
        *,
        warn: int | str | None = None,
        budget: int | str | None = None,
        monitor: HasLevel | None = None,
        retry_after: float = 5,
        exempt: Collection[str] = (),
        meter: str | None = None,
    ) -> None:
        super().__init__(
            None,
            warn=warn,
            budget=budget,
            monitor=monitor,
            retry_after=retry_after,
            exempt=exempt,
            label=lambda _: None,  # the router has run before the middleware
            meter=meter,
        )
        self._limits = (warn, budget, meter)
        self._charged: dict[str, _ChargedHandler] = {}

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request."""
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await handler(request)
        if self._is_full(request.path):
            self._refused += 1
            return web.Response(status=503, body=REFUSAL, headers={"Retry-After": self._retry_after})
        name = aiohttp_route(request) or UNMATCHED
        charged = self._charged.get(name)
        if charged is None:
            warn, budget, meter = self._limits
            scope = memory_scope(name, warn=warn, budget=budget, meter=meter)
            charged = self._charged[name] = scope(_answer)
        try:
            answer = await charged(request, handler)
        finally:
            self._requests += 1
            self._unmatched += name == UNMATCHED
        if isinstance(answer, web.HTTPException):
            raise answer
        return answer


async def _answer(request: web.Request, handler: Handler) -> _Answer:
    try:
        return await handler(request)
    except web.HTTPException as answer:
        if answer.status >= _SERVER_ERROR:
            raise
        return answer
