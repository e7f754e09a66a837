"""Adapters for ASGI frameworks, logging and structlog.

No framework is imported.
"""

from memtools.integrations.asgi import MemoryMiddleware, MiddlewareStatistics, route_template
from memtools.integrations.logging import MemoryFilter
from memtools.integrations.structlog import add_memory

__all__ = [
    "MemoryFilter",
    "MemoryMiddleware",
    "MiddlewareStatistics",
    "add_memory",
    "route_template",
]
