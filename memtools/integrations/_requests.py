"""What the middlewares of web servers share: the owner of a request, its late name, and when requests are refused.

A file of its own because each kind of server has an adapter in a file, and none is the other's base.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol, TypeAlias

from memtools._records import record
from memtools.errors import ConfigError
from memtools.ledger import Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.readings import Level
from memtools.scopes._budgets import check_usage, make_budget, parse_budget
from memtools.scopes._calls import CallOptions
from memtools.units import parse_seconds

UNMATCHED: Final = "<unmatched>"
REFUSAL: Final = b"Memory is short here at the moment; try again later.\n"

# Any: a scope of ASGI or an environment of WSGI contains what server, framework and application agree upon.
Label: TypeAlias = Callable[[Mapping[str, Any]], str | None]

_log = logging.getLogger("memtools.integrations")

# By the module of the application's class, so that none of them has to be loaded.
_ADAPTERS: Final[Mapping[str, str]] = {
    "aiohttp.": "memtools.integrations.aiohttp.MemoryMiddleware, in middlewares=[...]",
    "celery.": "memtools.integrations.celery.watch_worker",
    "django.core.handlers.": "memtools.integrations.django.MemoryMiddleware, the first entry of MIDDLEWARE",
}


def refuse_applications_of_others(app: object) -> None:
    """Raise for an application whose routes, or tasks, only another adapter sees.

    Raises:
        ConfigError: which names that adapter.
    """
    module = type(app).__module__
    for prefix, adapter in _ADAPTERS.items():
        if module.startswith(prefix):
            raise ConfigError("app", app, f"{adapter} for this application")


def _may_begin(monitor: "HasLevel | None") -> Callable[[], bool]:
    """Return what says whether a request may begin: a `MemoryMonitor` lets a minimum through, others have a level."""
    try_admit: Callable[[], bool] | None = getattr(monitor, "try_admit", None)
    if try_admit is not None:
        return try_admit
    return lambda: monitor is None or monitor.level < Level.CRITICAL


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


class RequestMiddleware:
    """The options of a middleware, and its counts.

    Args:
        app: the application, checked by the adapter.
        warn: see `MemoryMiddleware`.
        budget: see `MemoryMiddleware`.
        monitor: see `MemoryMiddleware`.
        retry_after: see `MemoryMiddleware`.
        exempt: see `MemoryMiddleware`.
        label: see `MemoryMiddleware`.
        meter: see `MemoryMiddleware`.

    Raises:
        ConfigError: for an argument that makes no sense.
    """

    def __init__(
        self,
        app: Any,
        *,
        warn: int | str | None,
        budget: int | str | None,
        monitor: HasLevel | None,
        retry_after: float,
        exempt: Collection[str],
        label: Label,
        meter: str | None,
    ) -> None:
        if not callable(label):
            raise ConfigError("label", label, "a callable that takes the scope of a request")
        if isinstance(exempt, str):
            raise ConfigError("exempt", exempt, "a collection of paths such as ('/health',)")
        if monitor is not None and not hasattr(monitor, "level"):
            raise ConfigError("monitor", monitor, "a MemoryMonitor, or another object with a level")
        self._app = app
        self._label = label
        self._may_begin = _may_begin(monitor)
        self._retry_after = str(max(1, round(parse_seconds(retry_after, name="retry_after"))))
        self._exempt = frozenset(exempt)
        self._warn_bytes = None if warn is None else parse_budget(warn, name="warn")
        self._options = CallOptions(
            UNMATCHED,
            "scope",
            choose_meter(meter),
            None if budget is None else make_budget(budget),
            on_end=self._check_usage if warn is not None or budget is not None else None,
        )
        self._label_error_logged = False
        self._requests = self._unmatched = self._refused = 0

    def statistics(self) -> MiddlewareStatistics:
        """Return the counts so far."""
        return MiddlewareStatistics(self._requests, self._unmatched, self._refused)

    def _find_name(self, scope: Mapping[str, Any]) -> str | None:
        try:
            return self._label(scope)
        except Exception:
            if not self._label_error_logged:
                self._label_error_logged = True
                _log.exception(
                    "label %r failed; the requests for which it fails are counted as %s", self._label, UNMATCHED
                )
            return None

    def _check_usage(self, owner: Owner, error: BaseException | None) -> None:
        check_usage(owner, current_usage(owner), warn_bytes=self._warn_bytes, failed=error is not None, error=error)

    def _count(self, owner: Owner | None) -> None:
        self._requests += 1
        self._unmatched += owner is None or owner.name == UNMATCHED

    def _is_full(self, path: object) -> bool:
        return path not in self._exempt and not self._may_begin()
