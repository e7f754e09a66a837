"""Health probes of a supervisor, answered by a monitor: as an ASGI and a WSGI application, and as a function.

```python
from memtools import MemoryMonitor
from memtools.integrations.health import HealthApp  # or WSGIHealthApp

monitor = MemoryMonitor()
health = HealthApp(monitor)  # Starlette and FastAPI: app.mount("/health", health)
```
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, Protocol, TypeAlias

from memtools._records import record
from memtools.errors import ConfigError
from memtools.monitor import Health

READY: Final = "ready"
LIVE: Final = "live"

# ASGI 3.0 and PEP 3333. Any: what server, framework and application agree upon.
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class HasHealth(Protocol):
    """An object that knows the health of the process, such as a `MemoryMonitor`."""

    def health(self) -> Health:
        """Return it; called on an event loop, so it must not wait."""
        ...


@record
class HealthResponse:
    """The answer to a probe, for a framework's own response.

    Attributes:
        status: 200 or 503; 404 for a path that is no probe.
        headers: the headers, with content type, length, and `Cache-Control: no-store`.
        body: a JSON object; empty for 404.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def health_response(monitor: HasHealth, path: str) -> HealthResponse:
    """Return the answer to the probe of a path, whose last segment is `ready` or `live`.

    `ready` is 503 from `CRITICAL` on until that level is left, and while the monitor does not sample; `live` is 503
    once memory is exhausted (`MemoryMonitor(exhausted_after=...)`). An empty path, or `health`, is the same as `ready`.

    ```python
    from memtools import MemoryMonitor

    with MemoryMonitor() as monitor:
        monitor.check()
        answer = health_response(monitor, "/health/ready")
        assert answer.status == 200 and b'"level":"NORMAL"' in answer.body
        # Django: HttpResponse(answer.body, status=answer.status, headers=answer.headers)
    ```

    Args:
        monitor: a `MemoryMonitor`.
        path: of the request.

    Cost: some microseconds; it reads and waits for nothing.
    """
    probe = path.rstrip("/").rpartition("/")[2]
    if probe not in (READY, LIVE, "", "health"):
        return _response(404, b"")
    health = monitor.health()
    is_good = health.is_live if probe == LIVE else health.is_ready
    found = {
        "status": health.status,
        "reason": health.reason,
        "level": health.level.name,
        "used_bytes": health.used_bytes,
        "limit_bytes": health.limit_bytes,
        "headroom_bytes": health.headroom_bytes,
        "age_s": None if health.age_s is None else round(health.age_s, 3),
        "monitor": health.monitor,
    }
    return _response(200 if is_good else 503, json.dumps(found, separators=(",", ":")).encode())


def _response(status: int, body: bytes) -> HealthResponse:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
    }
    return HealthResponse(status, headers, body)


class HealthApp:
    """An ASGI application that answers the probes of a supervisor: `GET` and `HEAD` of `ready` and `live`.

    Mount it at `/health`, outside of what needs a login. Where `MemoryMiddleware(monitor=...)` is around it, its paths
    have to be among `exempt`. It serves alone as well, on a port of its own.

    Args:
        monitor: a `MemoryMonitor`.

    Raises:
        ConfigError: for an object without `health()`.
    """

    def __init__(self, monitor: HasHealth) -> None:
        self._monitor = _checked(monitor)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection; those other than HTTP requests and the lifespan are closed."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            answer = _answer(self._monitor, scope["method"], scope["path"])
            headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            body = b"" if scope["method"] == "HEAD" else answer.body
            await send({"type": "http.response.body", "body": body})


class WSGIHealthApp:
    """The same as a WSGI application, for `DispatcherMiddleware` of Werkzeug, say.

    ```python
    from memtools import MemoryMonitor

    with MemoryMonitor() as monitor:
        monitor.check()
        health = WSGIHealthApp(monitor)
        told = []
        health({"REQUEST_METHOD": "GET", "PATH_INFO": "/live"}, lambda status, headers: told.append(status))
        assert told == ["200 OK"]
    ```

    Args:
        monitor: a `MemoryMonitor`.

    Raises:
        ConfigError: for an object without `health()`.
    """

    def __init__(self, monitor: HasHealth) -> None:
        self._monitor = _checked(monitor)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answer one request."""
        method = environ["REQUEST_METHOD"]
        answer = _answer(self._monitor, method, environ.get("PATH_INFO", ""))
        start_response(_STATUS_LINES[answer.status], [(name.title(), value) for name, value in answer.headers.items()])
        return [] if method == "HEAD" else [answer.body]


_STATUS_LINES: Final = {
    200: "200 OK",
    404: "404 Not Found",
    405: "405 Method Not Allowed",
    503: "503 Service Unavailable",
}


def _checked(monitor: HasHealth) -> HasHealth:
    if not callable(getattr(monitor, "health", None)):
        raise ConfigError("monitor", monitor, "a MemoryMonitor, or another object with health()")
    return monitor


def _answer(monitor: HasHealth, method: str, path: str) -> HealthResponse:
    return health_response(monitor, path) if method in ("GET", "HEAD") else _response(405, b"")


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
