"""A WSGI service whose workers publish their figures: /work opens a scope, /metrics shows all workers, /pid the worker.

With `--preload` the parent of the workers publishes, too, and each worker goes on where it was forked.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from memtools import memory_scope
from memtools.exporters.prometheus import MultiprocessMetrics

metrics = MultiprocessMetrics(interval=0.05)
with memory_scope("start", meter="rss"):
    pass


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/work":
        with memory_scope("work", meter="rss"):
            return [str(os.getpid()).encode()]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return [generate_latest(registry)]


def child_exit(_server: object, worker: Any) -> None:
    """Hook of gunicorn, in its parent process."""
    mark_process_dead(worker.pid)
