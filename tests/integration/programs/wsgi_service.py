"""A WSGI service that is watched in every way: a monitor, a scope for each request, a function with a budget.

The monitor is started when the module is loaded: with `--preload` in the parent of the workers.
"""

import json
import os
import time

from write_accounts import write

from memtools import BudgetExceeded, MemoryMonitor, memory_budget, memory_scope
from memtools.events import subscribe
from memtools.integrations.wsgi import WSGIMemoryMiddleware

MB = 1_000_000

kept = []
monitor = MemoryMonitor(warning="2 GiB", critical="4 GiB", name="shop", min_interval=0.05, max_interval=0.2)
monitor.start()


@memory_budget("8 MB")
def grow_without_end():
    parts = []
    while True:
        parts.append(bytearray(100_000))
        time.sleep(0.0001)


def use(size_bytes):
    """Hold half of the bytes until the end, give the other half back; let other requests run meanwhile."""
    with memory_scope("use") as scope:
        parts = []
        for _ in range(10):
            parts.append(bytearray(size_bytes // 10))
            time.sleep(0.001)
        kept.append(parts[:5])
        del parts
    usage = scope.usage
    return {"retained": usage.retained_bytes, "peak": usage.peak_bytes, "exact": usage.exact, "note": usage.note}


def stop():
    try:
        grow_without_end()
    except BudgetExceeded as error:
        return {"stopped_at": error.used_bytes}
    return {"stopped_at": None}


def watch():
    reading = monitor.check()
    statistics = monitor.statistics()
    return {"level": monitor.level.name, "mode": statistics.mode, "used": reading.used_bytes}


def answer(path):
    name, _, size = path.strip("/").partition("/")
    if name == "use":
        return use(int(size))
    return {"stop": stop, "watch": watch}[name]()


def application(environ, start_response):
    body = json.dumps({"pid": os.getpid()} | answer(environ["PATH_INFO"])).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    yield body


subscription = subscribe(write)
application = WSGIMemoryMiddleware(application, label=lambda environ: "/" + environ["PATH_INFO"].split("/")[1])
