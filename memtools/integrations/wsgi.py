"""WSGI middleware that charges each request to its route."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from memtools.errors import ConfigError
from memtools.integrations._requests import REFUSAL, HasLevel, Label, RequestMiddleware, refuse_applications_of_others
from memtools.ledger import Owner, active_owner
from memtools.ledger._context import Suspension
from memtools.ledger._ledger import look_up_name, name_late
from memtools.scopes._calls import raise_if_exceeded

# PEP 3333. Any: the environment contains what server, framework and application agree upon.
Environment: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
Application: TypeAlias = Callable[[Environment, StartResponse], Iterable[bytes]]

_COMPLETE: Final = (list, tuple)


def wsgi_route(environ: Mapping[str, Any]) -> str | None:
    """Return the template of the route that a request has taken, with `SCRIPT_NAME` in front; None if none is known.

    For Flask, and others that keep a request of Werkzeug with a `url_rule`, and for Bottle. Django keeps the route in
    its request, which no middleware of WSGI sees.
    """
    found: object = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", None)
    if found is None:
        found = getattr(environ.get("bottle.route"), "rule", None)
    return str(environ.get("SCRIPT_NAME", "")).rstrip("/") + found if isinstance(found, str) else None


class WSGIMemoryMiddleware(RequestMiddleware):
    """Charges each request of a WSGI application to the route that it takes, as a scope of that name.

    ```python
    from memtools.integrations.wsgi import WSGIMemoryMiddleware

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    app = WSGIMemoryMiddleware(app, warn="50 MiB")  # Flask: app.wsgi_app = WSGIMemoryMiddleware(app.wsgi_app)
    ```

    The name is the template of the route, as in `/orders/<int:id>`, and `<unmatched>` where there is none: nothing that
    a client sends becomes a name. The scope begins with the call of the application, and ends when the server closes
    the body; what the server does between two pieces of the body is not charged to it. A body that is a list or a
    tuple, or the server's file wrapper, is returned as it is, so that the server treats it as before; the scope ends at
    once then.

    Args:
        app: the application.
        warn: a higher peak of one request is logged as a warning; a size or a share of the limit.
        budget: the highest peak that one request may have; `BudgetExceeded` is then raised in it, which servers answer
            with 500.
        monitor: requests are refused with 503 while its level is `CRITICAL`, but for the `min_flow` of a
            `MemoryMonitor`, and once it ends the process; a `MemoryMonitor`, or another object with a `level`.
        retry_after: the `Retry-After` of the 503, in seconds.
        exempt: paths that are never refused, as `"/health"`; exactly as the request has them.
        label: returns the name for the environment of a framework that keeps its routes elsewhere; None for no route.
            It is called more than once for a request.
        meter: what counts; see `memory_scope`.

    Raises:
        ConfigError: for an argument that makes no sense, as an ASGI application.
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
        label: Label = wsgi_route,
        meter: str | None = None,
    ) -> None:
        if label is wsgi_route:
            refuse_applications_of_others(app)
        if not callable(app):
            raise ConfigError("app", app, "a WSGI application")
        if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
            raise ConfigError("app", app, "a WSGI application; for ASGI there is MemoryMiddleware")
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

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if self._is_full(environ.get("PATH_INFO")):
            self._refused += 1
            return self._refuse(start_response)
        active_before = active_owner()
        owner = self._options.open()
        suspension = Suspension(owner, active_before)
        route = _Route(self._find_name, environ, start_response)
        name_late(owner, route.look_up)
        try:
            body = self._app(environ, route.start_response)
        except BaseException as error:
            self.end_request(owner, error)
            raise
        if type(body) in _COMPLETE or _is_file(body, environ):
            self.end_request(owner, None)
            return cast("Iterable[bytes]", body)
        suspension.suspend()
        return (_SizedBody if hasattr(body, "__len__") else _Body)(self, suspension, body)

    def end_request(self, owner: Owner, error: BaseException | None) -> None:
        """End the scope of a request, once its body was sent or given up.

        Args:
            owner: of the request.
            error: what ended it, None if nothing did.

        Raises:
            BudgetExceeded: if the request took more than its budget, and did not fail by itself.
        """
        look_up_name(owner, is_last=True)
        self._count(owner)
        self._options.end(owner, error)

    def _refuse(self, start_response: StartResponse) -> list[bytes]:
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(REFUSAL))),
            ("Retry-After", self._retry_after),
        ]
        start_response("503 Service Unavailable", headers)
        return [REFUSAL]


class _Route:
    """The route of a request: Flask takes it out of the environment when its part is done, before the body is sent."""

    __slots__ = ("_environ", "_find", "_name", "_start_response")

    def __init__(self, find: Label, environ: Environment, start_response: StartResponse) -> None:
        self._find = find
        self._environ = environ
        self._start_response = start_response
        self._name: str | None = None

    def start_response(self, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
        """Look the name up and begin the response."""
        self._name = self._find(self._environ) or self._name
        return self._start_response(*args, **kwargs)

    def look_up(self) -> tuple[str | None, bool]:
        """Return the name as far as it is known, and that it is not final."""
        return self._name or self._find(self._environ), False


def _is_file(body: object, environ: Environment) -> bool:
    # The server sends a file by `sendfile`, if it recognises its own wrapper.
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


class _Body:
    """The body of a response, whose pieces are made in the scope of the request."""

    def __init__(self, middleware: WSGIMemoryMiddleware, suspension: Suspension, body: Any) -> None:
        self._middleware = middleware
        self._suspension = suspension
        self._body = body
        self._pieces: Iterator[bytes] | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> "_Body":
        return self

    def __next__(self) -> bytes:
        raise_if_exceeded(self._suspension.owner)
        self._suspension.resume()
        try:
            if self._pieces is None:
                self._pieces = iter(self._body)
            return next(self._pieces)
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._suspension.suspend()

    def close(self) -> None:
        """Close the body, and end the scope of the request."""
        owner = self._suspension.owner
        if owner.ended:
            return
        self._suspension.resume()
        error, self._error = self._error, None
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._middleware.end_request(owner, error)

    def __del__(self) -> None:
        # A server that did not close it, against PEP 3333.
        owner = self._suspension.owner
        if not owner.ended:
            self._suspension.resume()
            self._middleware.end_request(owner, GeneratorExit())


class _SizedBody(_Body):
    """One whose number of pieces is known."""

    def __len__(self) -> int:
        return len(self._body)
