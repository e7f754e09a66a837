"""memtools inside other people's frames: ASGI servers, logging, structlog. None of them is imported for it."""

from memtools.integrations._asgi import MemoryMiddleware, MiddlewareStatistics
from memtools.integrations._logging import MemoryFilter
from memtools.integrations._routes import UNMATCHED, route_label
from memtools.integrations._structlog import add_memory

__all__ = [
    "UNMATCHED",
    "MemoryFilter",
    "MemoryMiddleware",
    "MiddlewareStatistics",
    "add_memory",
    "route_label",
]
