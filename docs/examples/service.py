"""A shop behind uvicorn that stays inside its memory limit, and says so; with a leak in it that is to be found.

    python docs/examples/service.py             # a demonstration: the shop under load, until the leak is found
    python docs/examples/service.py --serve     # the shop alone, as a service, until it is interrupted

The first half of this file is the service, and what is worth copying. It is set up from outside:

    MEMTOOLS_WARNING, MEMTOOLS_CRITICAL   when memory is short: "500 MB", or "80%" of what the container may use
    SHOP_WEBHOOK                          who is told; the log, where it is not set

The second half is the demonstration: it starts the service in a process of its own, loads it, receives its alerts,
scrapes its metrics and asks for its report. It needs `pip install 'memtools[prometheus]' uvicorn starlette httpx`.
"""

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from memtools import BoundedList, Component, Config, MemoryMonitor, WeakCache
from memtools.alerts import AlertRule, Alerts, WebhookChannel
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.integrations import MemoryMiddleware
from memtools.readings import resident_bytes

# The service ---------------------------------------------------------------------------------------------------------

NEVER_REFUSED = ("/health", "/memory", "/metrics/")  # who looks after the service is served in any case


class Shop:
    """What the service is for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}  # the leak: a page for whatever anybody ever searched for
        self.orders: WeakCache[int, dict[str, Any]] = WeakCache(strong=1000)
        self.visits: BoundedList[str] = BoundedList(maxlen=10_000)

    async def search(self, request: Request) -> Response:
        """Answer with the page of what was found, and keep it for the next one who asks."""
        words = request.query_params.get("q", "")
        self.visits.append(words)
        if words not in self.pages:
            self.pages[words] = render(words)
        return Response(self.pages[words], media_type="text/plain")

    async def order(self, request: Request) -> Response:
        """Answer with an order; those that are asked for again are still there."""
        number = request.path_params["number"]
        return JSONResponse(self.orders.get_or_create(number, lambda: {"order": number, "lines": list(range(20))}))


def render(words: str) -> bytes:
    """Return a page of 600 lines, 48 KB, all about the words."""
    return "\n".join(f"{number:>6}  {words:<72}" for number in range(600)).encode()


def make_alerts(monitor: MemoryMonitor) -> Alerts:
    """Return who is told of what, and what is done about it."""
    url = os.environ.get("SHOP_WEBHOOK")
    told = "hook" if url else "log"
    return Alerts(
        [
            AlertRule("warning", notify=told),
            AlertRule("critical", action="immediate_cleanup", notify=told),
        ],
        channels={"hook": WebhookChannel(url)} if url else {},
        monitor=monitor,
        service="shop",
    )


def make_app() -> Starlette:
    """Put the service together; nothing starts before the server says so."""
    monitor = MemoryMonitor(**Config.from_env().monitor(), name="shop")
    alerts = make_alerts(monitor)
    registry = CollectorRegistry()
    shop = Shop()

    async def health(_: Request) -> Response:
        return JSONResponse({"memory": monitor.level.name})

    async def memory(_: Request) -> Response:
        # It looks at every object of the process: in a thread, and not for everybody to call.
        return PlainTextResponse(await asyncio.to_thread(monitor.report))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Ended in reverse: first the monitor, then alerts, which deliver what is waiting, then the rest.
        async with Component("shop") as parts:
            parts.own(shop.orders)
            parts.own(MemtoolsCollector(registry))
            async with alerts, monitor:
                yield

    app = Starlette(
        routes=[
            Route("/search", monitor.watch(shop.search)),
            Route("/orders/{number:int}", monitor.watch(shop.order)),
            Route("/health", health),
            Route("/memory", memory),
            Mount("/metrics", make_asgi_app(registry)),
        ],
        lifespan=lifespan,
    )
    # An account for each route; and while memory is critical 503, with Retry-After, instead of more work.
    app.add_middleware(MemoryMiddleware, warn="50 MiB", monitor=monitor, spare=NEVER_REFUSED)
    return app


def serve(port: int) -> None:
    """Run the service on loopback until it is interrupted; the first line on stdout is its address."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        # Inherited by its connections: asyncio sets it only where the protocol was named, and 40 ms a request are lost.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(), log_level="warning", access_log=False))
        asyncio.run(server.serve(sockets=[listener]))


# The demonstration ---------------------------------------------------------------------------------------------------

MIB = 2**20
SHOWN = ("monitor_level", "monitor_changes", "cleanup_passes", "cleanup_freed", "scope_entered", "scope_live")


@dataclass
class Story:
    """What happened, in the order in which it did."""

    began: float = field(default_factory=time.monotonic)
    statuses: Counter[int] = field(default_factory=Counter)
    levels: list[tuple[float, str]] = field(default_factory=list)
    alerts: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def is_told(self) -> bool:
        """Whether the service has turned work away, and somebody was told that it is critical."""
        return self.statuses[503] > 0 and any(alert["level"] == "critical" for _, alert in self.alerts)


@contextmanager
def webhook(story: Story) -> Iterator[str]:
    """Receive alerts, as the other end of a webhook does; yield its address."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            story.alerts.append((story.elapsed, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/alerts"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def service(url: str) -> Iterator[str]:
    """Start the service with thresholds that are soon reached; yield its address."""
    # This process has imported the same as the other will, so this is what the other begins with.
    usual = resident_bytes()
    settings = {
        "MEMTOOLS_WARNING": str(usual + 30 * MIB),
        "MEMTOOLS_CRITICAL": str(usual + 60 * MIB),
        "SHOP_WEBHOOK": url,
    }
    command = [sys.executable, __file__, "--serve", "--port", "0"]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def shop_around(client: httpx.AsyncClient, story: Story, name: str) -> None:
    """Search for what nobody has searched for yet, now and then order what many order, and again."""
    for number in itertools.count():
        path = f"/search?q={name}+{number}" if number % 5 else f"/orders/{number % 50}"
        answer = await client.get(path)
        story.statuses[answer.status_code] += 1
        if answer.status_code == 503:
            await asyncio.sleep(0.1)  # Retry-After says more, but we have no time


async def watch_health(client: httpx.AsyncClient, story: Story, seconds: float) -> None:
    """Note each change of the level, until the story is told or the time is over."""
    while story.elapsed < seconds and not story.is_told:
        level = (await client.get("/health")).json()["memory"]
        if not story.levels or story.levels[-1][1] != level:
            story.levels.append((story.elapsed, level))
        await asyncio.sleep(0.05)


async def load(address: str, story: Story, seconds: float) -> tuple[str, str]:
    """Be eight customers until the story is told; return the metrics and the report of the service."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        customers = [asyncio.create_task(shop_around(client, story, f"customer {one}")) for one in range(8)]
        try:
            await watch_health(client, story, seconds)
        finally:
            for customer in customers:
                customer.cancel()
            await asyncio.gather(*customers, return_exceptions=True)
        return (await client.get("/metrics/")).text, (await client.get("/memory")).text


def show(story: Story, metrics: str, report: str) -> None:
    """Print what happened."""
    good, refused = story.statuses[200], story.statuses[503]
    failed = story.statuses.total() - good - refused
    print(f"requests: {good:,} answered, {refused:,} turned away while memory was critical, {failed:,} failed")
    print("\nlevels, as /health told them")
    for at, level in story.levels:
        print(f"  {at:5.1f} s  {level}")
    print("\nalerts that reached the webhook")
    for at, alert in story.alerts:
        print(f"  {at:5.1f} s  {alert['kind']:<9}  {alert['level']:<8}  {alert['summary']}")
    print("\nmetrics (some)")
    for line in metrics.splitlines():
        if line.startswith(tuple(f"memtools_{name}" for name in SHOWN)) and "_created" not in line:
            print(f"  {line}")
    print(f"\nthe report of the monitor\n{report}")


def main() -> int:
    """Read the command line; serve, or demonstrate."""
    parser = argparse.ArgumentParser(description="A service that stays inside its memory limit, and says so.")
    parser.add_argument("--serve", action="store_true", help="only serve, until interrupted")
    parser.add_argument("--port", type=int, default=8000, help="where to serve; 0 takes any that is free")
    parser.add_argument("--seconds", type=float, default=30.0, help="the most that the load may take")
    options = parser.parse_args()
    if options.serve:
        serve(options.port)
        return 0

    story = Story()
    with webhook(story) as url, service(url) as address:
        metrics, report = asyncio.run(load(address, story, options.seconds))
    show(story, metrics, report)
    return 0 if story.is_told else 1


if __name__ == "__main__":
    sys.exit(main())
