"""Which route a request has taken, in the words of the program and never in those of the request.

Covers: hearing of it while the router writes it into the request's scope, the template with what stands before it.
Leaves to others: what is done with the label (`_asgi`).

Routers of Starlette and FastAPI write `route`, `root_path` and `path_params` into the scope as they go down; a mounted
application gets its own path as part of `root_path`, with the values of the request in it: those are put back into
their names here, or each tenant would be a name of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

UNMATCHED: Final = "<unmatched>"

# Any: what frameworks put into a scope is theirs.
Label = Callable[[Mapping[str, Any]], str | None]


class RoutedScope(dict[str, Any]):
    """The scope of one request that tells when a router writes into it.

    Args:
        scope: the scope as the server made it.
        on_routed: called after each such write.

    Attributes:
        prefix: what stands before the path of a route: the server's `root_path`, and the templates of mounts.
        is_inside_mount: whether a mounted application was entered, and has not found a route of its own yet.
    """

    __slots__ = ("_on_routed", "is_inside_mount", "prefix")

    def __init__(self, scope: Mapping[str, Any], on_routed: "Callable[[RoutedScope], object]") -> None:
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
        """Take over the changes of a router, and tell of them."""
        changes: dict[str, Any] = dict(*args, **named)
        if "root_path" in changes:
            self.prefix += self._mounted_at(changes)
            self.is_inside_mount = True
        if "route" in changes:
            self.is_inside_mount = False
        super().update(changes)
        if "root_path" in changes or "route" in changes:
            self._on_routed(self)

    def _mounted_at(self, changes: Mapping[str, Any]) -> str:
        known: Mapping[str, Any] = self.get("path_params") or {}
        params: Mapping[str, Any] = changes.get("path_params") or {}
        piece = str(changes["root_path"]).removeprefix(str(self.get("root_path", "")))
        return _template(piece, {name: value for name, value in params.items() if name not in known})


def route_label(scope: Mapping[str, Any]) -> str | None:
    """Return the template of the route that a request has taken, with the root path in front; None where none is known.

    For the scopes of Starlette, FastAPI, and whatever else writes an object with a `path` into `scope["route"]`.
    """
    prefix = scope.prefix if isinstance(scope, RoutedScope) else str(scope.get("root_path", ""))
    if isinstance(scope, RoutedScope) and scope.is_inside_mount:
        return prefix
    route = scope.get("route")
    if route is None:
        return None
    path = _whole_path(scope, route) or getattr(route, "path", None)
    return prefix.rstrip("/") + path if isinstance(path, str) else None


def _whole_path(scope: Mapping[str, Any], route: object) -> str | None:
    # FastAPI 0.130 and later: a route of an included router has its own path only, and the whole one is kept beside it.
    beside: object = scope.get("fastapi")
    if not isinstance(beside, dict):
        return None
    found: object = cast("dict[str, Any]", beside).get("effective_route_context")
    if found is None or getattr(found, "original_route", None) is not route:
        return None
    path = getattr(found, "path", None) or getattr(found, "path_format", None)
    return path if isinstance(path, str) else None


def _template(piece: str, params: Mapping[str, Any]) -> str:
    named = {str(value): name for name, value in params.items()}
    segments = piece.split("/")
    if not named.keys() <= set(segments):
        # A value that was converted, or is more than a segment, stands in the path in another form.
        return "/{" + ",".join(params) + "}"
    return "/".join("{" + named[segment] + "}" if segment in named else segment for segment in segments)
