"""A service under test: each order leaves 100 kB behind in a list that can be shortened. Run, not imported, by tests.

    python leaking_service.py bare | watched

`watched` is the same service with a monitor, the middleware, alerts and metrics. The first line on stdout is the port.
The monitor's warning lies 60 MiB above what the process begins with. Blocks of 100 kB must go back to the system when
they are freed, so it is started with MALLOC_MMAP_THRESHOLD_=32768 where the C library is glibc.
"""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memtools import BoundedList, Component, Level, MemoryMonitor
from memtools.alerts import AlertRule, Alerts
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.integrations import MemoryMiddleware
from memtools.readings import resident_bytes

MIB = 2**20
LEFT_BYTES = 100_000

history: BoundedList[bytearray] = BoundedList(maxlen=1_000_000)


async def order(request: Request) -> Response:
    """Sum an order of 50 lines up, and keep what it was made from."""
    asked = await request.json()
    history.append(bytearray(b"x") * LEFT_BYTES)
    lines = [{"id": line["id"], "total": line["price"] * line["count"]} for line in asked["lines"]]
    return JSONResponse({"lines": lines, "total": sum(line["total"] for line in lines)})


def bare() -> Starlette:
    """Return the service without anything of memtools but the list."""
    return Starlette(routes=[Route("/orders", order, methods=["POST"])])


def watched() -> Starlette:
    """Return the service with everything."""
    usual = resident_bytes()
    monitor = MemoryMonitor(usual + 60 * MIB, usual + 600 * MIB, min_interval=0.02, name="leaking")
    registry = CollectorRegistry()

    async def state(_: Request) -> Response:
        seen = monitor.statistics()
        changes = {level.name: seen.level_changes[level] for level in Level}
        return JSONResponse(
            {"level": seen.level.name, "changes": changes, "cleanups": seen.cleanups, "freed": seen.freed_bytes}
        )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with Component("leaking") as parts:
            parts.own(MemtoolsCollector(registry))
            async with Alerts([AlertRule("warning", notify="log")], monitor=monitor), monitor:
                yield

    routes = [Route("/orders", monitor.watch(order), methods=["POST"]), Route("/state", state)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.add_middleware(MemoryMiddleware, warn="50 MiB", monitor=monitor)
    return app


def main(kind: str) -> None:
    """Serve until terminated."""
    app = {"bare": bare, "watched": watched}[kind]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer waits for an acknowledgment
        print(json.dumps(listener.getsockname()[1]), flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main(sys.argv[1])
