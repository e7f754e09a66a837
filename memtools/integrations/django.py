"""Django middleware that charges each request to its route.

A file of its own because it imports Django, and each adapter has the name of its library.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import Any, Final, TypeAlias, cast

from memtools.errors import ConfigError
from memtools.integrations._requests import REFUSAL, RequestMiddleware
from memtools.ledger import Owner, active_owner
from memtools.ledger._ledger import look_up_name, name_late
from memtools.scopes._calls import CallOptions, OpenCall, coroutine_tracker, generate, generate_async

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.conf import settings  # type: ignore[import-untyped]
    from django.http import FileResponse, HttpResponse  # type: ignore[import-untyped]
except ImportError as _missing:
    raise ImportError("memtools.integrations.django needs Django: pip install django") from _missing

# Any: Django ships no types.
Request: TypeAlias = Any
Response: TypeAlias = Any
GetResponse: TypeAlias = Callable[[Request], Any]

_DEFAULTS: Final[Mapping[str, Any]] = {  # Any: the arguments of `RequestMiddleware`, each of its own type
    "warn": None,
    "budget": None,
    "monitor": None,
    "retry_after": 5,
    "exempt": (),
    "meter": None,
}


def django_route(request: Request) -> str | None:
    """Return the route that the resolver has found, with `SCRIPT_NAME` in front; None if there is none."""
    route = getattr(getattr(request, "resolver_match", None), "route", None)
    if not isinstance(route, str):
        return None
    return f"{request.META.get('SCRIPT_NAME', '').rstrip('/')}/{route.removeprefix('/')}"


class MemoryMiddleware(RequestMiddleware):
    """Charges each request to the route that the resolver finds for it, as a scope of that name.

    The first entry of `MIDDLEWARE`, so that what the others do is charged, too; in synchronous and asynchronous stacks:

    ```text
    MIDDLEWARE = ["memtools.integrations.django.MemoryMiddleware", ...]
    MEMTOOLS = {"warn": "50 MiB", "budget": "200 MiB"}
    ```

    The name is the route as it stands in `urlpatterns`, `/orders/<int:number>/`, and `<unmatched>` where there is none.
    The body of a `StreamingHttpResponse` is charged as well: in a synchronous stack to the scope of the request, in an
    asynchronous one to a scope of its own, `/export/ (body)`. The file of a `FileResponse` is the server's to send, and
    is not charged.

    Options are the items of the setting `MEMTOOLS`: `warn`, `budget`, `monitor`, `retry_after`, `exempt` and `meter`,
    as for the middleware of ASGI.

    Args:
        get_response: the next middleware, or the view, as Django passes it.

    Raises:
        ConfigError: for a setting that makes no sense.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        found: object = getattr(settings, "MEMTOOLS", {})
        if not isinstance(found, dict):
            raise ConfigError("MEMTOOLS", found, "a dict of options")
        chosen = cast("dict[str, Any]", found)
        unknown = sorted(map(str, chosen.keys() - _DEFAULTS.keys()))
        if unknown:
            raise ConfigError("MEMTOOLS", unknown[0], f"the options {', '.join(_DEFAULTS)}")
        options: dict[str, Any] = {**_DEFAULTS, **chosen}
        super().__init__(get_response, label=django_route, **options)
        # That of asgiref knows its own marks on Python 3.11.
        self._is_async = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated]
        if self._is_async:
            markcoroutinefunction(self)
        self._track = coroutine_tracker(self._options, self._serve_async)

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request; in an asynchronous stack, return what answers it when it is awaited."""
        if self._is_async:
            return self._answer_async(request)
        return self._refuse() if self._is_full(request.path_info) else self._serve(request)

    async def _answer_async(self, request: Request) -> Response:
        return self._refuse() if self._is_full(request.path_info) else await self._track(self._serve_async(request))

    def _serve(self, request: Request) -> Response:
        owner = self._options.open()
        name_late(owner, lambda: (self._find_name(request), False))
        try:
            response = self._app(request)
        except BaseException as error:
            self._finish_name(owner)
            self._options.end(owner, error)
            raise
        self._finish_name(owner)
        if _is_streamed(response) and not response.is_async:
            pieces = _pieces(response.streaming_content)
            response.streaming_content = generate(self._options, pieces, OpenCall(self._options, owner))
        else:
            self._options.end(owner, None)
        return response

    async def _serve_async(self, request: Request) -> Response:
        owner = active_owner()
        if owner is not None:
            name_late(owner, lambda: (self._find_name(request), False))
        try:
            response = await self._app(request)
        finally:
            if owner is not None:
                self._finish_name(owner)
        if _is_streamed(response) and response.is_async and owner is not None:
            options = CallOptions(f"{owner.name} (body)", "scope", self._options.meter)
            response.streaming_content = generate_async(options, _pieces_async(response.streaming_content))
        return response

    def _finish_name(self, owner: Owner) -> None:
        look_up_name(owner, is_last=True)
        self._count(owner)

    def _refuse(self) -> Response:
        self._refused += 1
        return HttpResponse(
            REFUSAL, status=503, content_type="text/plain; charset=utf-8", headers={"Retry-After": self._retry_after}
        )


def _is_streamed(response: Response) -> bool:
    return bool(getattr(response, "streaming", False)) and not isinstance(response, FileResponse)


def _pieces(content: Any) -> Generator[bytes, None, None]:
    yield from content


async def _pieces_async(content: Any) -> AsyncGenerator[bytes, None]:
    async for piece in content:
        yield piece
