"""Adapters for ASGI and WSGI frameworks, logging and structlog.

No framework is imported. What only one kind of server needs is in the module of its name: `memtools.integrations.wsgi`.
"""

from memtools.integrations._requests import MiddlewareStatistics
from memtools.integrations.asgi import MemoryMiddleware, route_template
from memtools.integrations.logging import MemoryFilter
from memtools.integrations.structlog import add_memory

__all__ = [
    "MemoryFilter",
    "MemoryMiddleware",
    "MiddlewareStatistics",
    "add_memory",
    "route_template",
]
