"""memtools inside other people's frames: ASGI servers, logging, structlog. None of them is imported for it."""

from memtools.integrations.asgi import UNMATCHED, MemoryMiddleware, MiddlewareStatistics, route_template
from memtools.integrations.logging import MemoryFilter
from memtools.integrations.structlog import add_memory

__all__ = [
    "UNMATCHED",
    "MemoryFilter",
    "MemoryMiddleware",
    "MiddlewareStatistics",
    "add_memory",
    "route_template",
]
