"""A shop behind uvicorn that stays inside its memory limit, with a leak in one endpoint.

    python docs/examples/service.py             # a demonstration: the shop under load, until the leak is found
    python docs/examples/service.py --serve     # the shop alone, as a service, until it is interrupted
    python docs/examples/service.py --page shop.html    # the demonstration, with the report as a page

The first half of this file is the service, to be copied from. It is configured by the environment:

    MEMTOOLS_WARNING, MEMTOOLS_CRITICAL   when memory is short: "500 MB", or "80%" of the container's limit
    MEMTOOLS_EXHAUSTED_AFTER              seconds at critical after which the process ends, to be started again: 300
    SHOP_WEBHOOK                          where alerts are sent; to the log, where it is not set
    SHOP_REPORT                           a file for the report of a process that ends, beside the log

The second half is the demonstration: it starts the service in a process of its own, loads it, receives its alerts,
scrapes its metrics and fetches its report. It needs `pip install 'memtools[prometheus]' uvicorn starlette httpx`.
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
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from memtools import BoundedList, Component, MemoryMonitor, WeakCache
from memtools.alerts import AlertRule, Alerts, WebhookChannel
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.integrations import MemoryMiddleware
from memtools.integrations.health import HealthApp
from memtools.readings import resident_bytes
from memtools.reports import html_page

NEVER_REFUSED = (
    "/health/ready",
    "/health/live",
    "/memory",
    "/memory.html",
    "/metrics/",
)  # needed most while memory is short


class Shop:
    """The endpoints of the service, and what they keep."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}  # the leak: a page for every search term
        self.orders: WeakCache[int, dict[str, Any]] = WeakCache(strong=1000)
        self.visits: BoundedList[str] = BoundedList(maxlen=10_000)

    async def search(self, request: Request) -> Response:
        """Return the page of a search, and keep it for the next request."""
        words = request.query_params.get("q", "")
        self.visits.append(words)
        if words not in self.pages:
            self.pages[words] = render(words)
        return Response(self.pages[words], media_type="text/plain")

    async def order(self, request: Request) -> Response:
        """Return an order; the latest ones are cached."""
        number = request.path_params["number"]
        return JSONResponse(self.orders.get_or_create(number, lambda: {"order": number, "lines": list(range(20))}))


def render(words: str) -> bytes:
    """Return a page of 600 lines, 48 KB, about the words."""
    return "\n".join(f"{number:>6}  {words:<72}" for number in range(600)).encode()


def make_alerts(monitor: MemoryMonitor) -> Alerts:
    """Return the alerts: which event goes to which channel, and what is done about it."""
    url = os.environ.get("SHOP_WEBHOOK")
    channel = "hook" if url else "log"
    return Alerts(
        [
            AlertRule("warning", notify=channel),
            AlertRule("critical", action="immediate_cleanup", notify=channel),
        ],
        channels={"hook": WebhookChannel(url)} if url else {},
        monitor=monitor,
        service="shop",
    )


def make_app() -> Starlette:
    """Return the application; nothing starts before its lifespan."""
    monitor = MemoryMonitor(name="shop", max_interval=0.25)
    monitor.exit_when_exhausted(report_file=os.environ.get("SHOP_REPORT"))
    alerts = make_alerts(monitor)
    registry = CollectorRegistry()
    shop = Shop()

    async def memory(_: Request) -> Response:
        # It visits every object of the process: run it in a thread, and protect this path in a real service.
        return PlainTextResponse(await asyncio.to_thread(monitor.report))

    async def memory_page(_: Request) -> Response:
        # The same for people: the curve, an account for each route, what the heap consists of.
        return HTMLResponse(await asyncio.to_thread(html_page, monitor=monitor, heap=True))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Closed in reverse: first the monitor, then the alerts, which deliver what is queued, then the rest.
        async with Component("shop") as parts:
            parts.own(shop.orders)
            parts.own(MemtoolsCollector(registry))
            async with alerts, monitor:
                yield

    app = Starlette(
        routes=[
            Route("/search", monitor.watch(shop.search)),
            Route("/orders/{number:int}", monitor.watch(shop.order)),
            Route("/memory", memory),
            Route("/memory.html", memory_page),
            Mount("/health", HealthApp(monitor)),
            Mount("/metrics", make_asgi_app(registry)),
        ],
        lifespan=lifespan,
    )
    # An account for each route; and while memory is critical 503, with Retry-After, but for one request a second.
    app.add_middleware(MemoryMiddleware, warn="50 MiB", monitor=monitor, exempt=NEVER_REFUSED)
    return app


def listen(host: str, port: int, fd: int | None) -> socket.socket:
    """Return a new listening socket, or the one that a supervisor has left open."""
    return socket.create_server((host, port)) if fd is None else socket.socket(fileno=fd)


def serve(host: str, port: int, fd: int | None = None) -> None:
    """Run the service until it is interrupted; the first line on stdout is its address."""
    with listen(host, port, fd) as listener:
        # Its connections inherit it: asyncio sets it only for a socket made with the protocol, and without it a request
        # takes 40 ms longer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(), log_level="warning", access_log=False))
        asyncio.run(server.serve(sockets=[listener]))


MIB = 2**20
SHOWN = ("monitor_level", "monitor_changes", "cleanup_passes", "cleanup_freed", "scope_entered", "scope_live")


@dataclass
class Demonstration:
    """The record of a demonstration, in the order of time."""

    started: float = field(default_factory=time.monotonic)
    statuses: Counter[int] = field(default_factory=Counter)
    levels: list[tuple[float, str]] = field(default_factory=list)
    alerts: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def is_complete(self) -> bool:
        """Whether the service has refused work, and has sent an alert that memory is critical."""
        return self.statuses[503] > 0 and any(alert["level"] == "critical" for _, alert in self.alerts)


@contextmanager
def webhook(demo: Demonstration) -> Iterator[str]:
    """Receive alerts on a local webhook; yield its address."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            demo.alerts.append((demo.elapsed, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

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
    # This process has imported the same modules, so the service starts with about the same size.
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


async def send_requests(client: httpx.AsyncClient, demo: Demonstration, name: str) -> None:
    """Send requests without end: new search terms, and every fifth time an order that others read, too."""
    for number in itertools.count():
        path = f"/search?q={name}+{number}" if number % 5 else f"/orders/{number % 50}"
        answer = await client.get(path)
        demo.statuses[answer.status_code] += 1
        if answer.status_code == 503:
            await asyncio.sleep(0.1)  # shorter than Retry-After, as the demonstration is short


async def watch_health(client: httpx.AsyncClient, demo: Demonstration, seconds: float) -> None:
    """Record each change of the level, as a probe sees it, until the demonstration is complete or the time is over."""
    while demo.elapsed < seconds and not demo.is_complete:
        level = (await client.get("/health/live")).json()["level"]
        if not demo.levels or demo.levels[-1][1] != level:
            demo.levels.append((demo.elapsed, level))
        await asyncio.sleep(0.05)


async def load(address: str, demo: Demonstration, seconds: float) -> tuple[str, str, str]:
    """Send requests from eight clients until it is complete; return the metrics, the report and the page of it."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        customers = [asyncio.create_task(send_requests(client, demo, f"customer {number}")) for number in range(8)]
        try:
            await watch_health(client, demo, seconds)
        finally:
            for customer in customers:
                customer.cancel()
            await asyncio.gather(*customers, return_exceptions=True)
        metrics, report, page = [await client.get(path) for path in ("/metrics/", "/memory", "/memory.html")]
        return metrics.text, report.text, page.text


def show(demo: Demonstration, metrics: str, report: str) -> None:
    """Print what happened."""
    good, refused = demo.statuses[200], demo.statuses[503]
    failed = demo.statuses.total() - good - refused
    print(f"requests: {good:,} answered, {refused:,} refused while memory was critical, {failed:,} failed")
    print("\nlevels, as reported by /health/live")
    for at, level in demo.levels:
        print(f"  {at:5.1f} s  {level}")
    print("\nalerts that reached the webhook")
    for at, alert in demo.alerts:
        print(f"  {at:5.1f} s  {alert['kind']:<9}  {alert['level']:<8}  {alert['summary']}")
    print("\nmetrics (some)")
    for line in metrics.splitlines():
        if line.startswith(tuple(f"memtools_{name}" for name in SHOWN)) and "_created" not in line:
            print(f"  {line}")
    print(f"\nthe report of the monitor\n{report}")


def main() -> int:
    """Read the command line; serve, or run the demonstration."""
    parser = argparse.ArgumentParser(description="A service that stays inside its memory limit.")
    parser.add_argument("--serve", action="store_true", help="only serve, until interrupted")
    parser.add_argument("--host", default="127.0.0.1", help="address of the service; 0.0.0.0 in a container")
    parser.add_argument("--fd", type=int, help="a listening socket that a supervisor has left open, in place of both")
    parser.add_argument("--port", type=int, default=8000, help="port of the service; 0 for any free port")
    parser.add_argument("--page", metavar="FILE", help="write the report of the demonstration to FILE as a page")
    parser.add_argument("--seconds", type=float, default=30.0, help="the longest time of the load")
    options = parser.parse_args()
    if options.serve:
        serve(options.host, options.port, options.fd)
        return 0

    demo = Demonstration()
    with webhook(demo) as url, service(url) as address:
        metrics, report, page = asyncio.run(load(address, demo, options.seconds))
    show(demo, metrics, report)
    if options.page:
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(page)
    return 0 if demo.is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
