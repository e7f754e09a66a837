"""Requests that an asyncio JSON service serves per second of processor time, with and without a ledger.

A service on loopback, in its own process, with a client in another: off, the ledger counting for the
process as a whole, each request an owner, the same with a black box, tracemalloc.

A ratio is processor time per request, divided by that of the same round without a ledger: 1.075 is 0.93 of the
requests per second. The service reads HTTP requests of some orders (60 bytes of JSON each), sums them up, and answers
with as many lines: on bare streams with 4 and with 50 orders, and with 4 behind uvicorn and starlette, where the owner
of a request is opened by `MemoryMiddleware`. The bare service with 50 orders does little else than make objects:
tracemalloc leaves it an eighth of its requests. The target goes by services to which tracemalloc leaves a quarter.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _compare import Result, print_results

REQUESTS = 2_000  # per figure, over all connections
CONNECTIONS = 8
SERVICES = {"bare, 4 orders": 4, "bare, 50 orders": 50, "starlette, 4 orders": 4}
WAYS = ("off", "ledger", "owners", "box", "tracemalloc")

Answer = Callable[[bytes], Awaitable[bytes]]


def run(rounds: int = 15) -> list[Result]:
    """Return processor time per request, divided by that without a ledger."""
    return [result for service in SERVICES for result in _compared(service, rounds)]


def _compared(service: str, rounds: int) -> list[Result]:
    figures: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for number in range(rounds):
        for way in order:
            if way != "tracemalloc" or number < 3:  # far off, and slow
                figures[way].append(_seconds_per_request(way, service))
        order.append(order.pop(0))

    traced = _ratio(figures["tracemalloc"], figures["off"])
    words = f"{statistics.median(figures['off']) * 1e6:.0f} us per request without; tracemalloc {1 / traced:.2f}"
    return [
        _result(f"{service}, each request an owner", figures["owners"], figures["off"], 0.93, words),
        _result(f"{service}, the ledger alone", figures["ledger"], figures["off"], 0.97, words),
        Result(
            f"asyncio JSON service: {service}, each request an owner, with a black box",
            "the same without a box",
            _ratio(figures["box"], figures["owners"]),
            1 / 0.98,
            "processor time per request",
        ),
    ]


def _result(title: str, own: list[float], off: list[float], share: float, note: str) -> Result:
    ratio = _ratio(own, off)
    words = f"processor time per request: {1 / ratio:.2f} of the requests, target {share}; {note}"
    return Result(f"asyncio JSON service: {title}", "the service without it", ratio, 1 / share, words)


def _ratio(own: list[float], off: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(own, off, strict=False))


def _seconds_per_request(way: str, service: str) -> float:
    orders = SERVICES[service]
    with _server(way, service.split(",")[0]) as port:
        asyncio.run(_load(port, REQUESTS // 4, orders))
        before = asyncio.run(_processor_time(port))
        asyncio.run(_load(port, REQUESTS, orders))
        return (asyncio.run(_processor_time(port)) - before) / REQUESTS


@contextmanager
def _server(way: str, kind: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", way, kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def _load(port: int, requests: int, orders: int) -> None:
    asked = [{"id": number, "name": f"item {number}", "price": number * 1.5, "count": 3} for number in range(orders)]
    body = json.dumps({"customer": "Ada", "orders": asked}).encode()
    await asyncio.gather(*(_ask(port, "/orders", body, requests // CONNECTIONS) for _ in range(CONNECTIONS)))


async def _processor_time(port: int) -> float:
    return float(json.loads(await _ask(port, "/processor-time", b"", 1)))


async def _ask(port: int, path: str, body: bytes, times: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = b""
    for _ in range(times):
        writer.write(head + body)
        answer = await _body(reader, await reader.readuntil(b"\r\n\r\n"))
    writer.close()
    await writer.wait_closed()
    return answer


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


async def _orders(body: bytes) -> bytes:
    asked = json.loads(body)
    lines = []
    for order in asked["orders"]:
        total = order["price"] * order["count"]
        lines.append({"id": order["id"], "name": order["name"].title(), "total": total, "tax": round(total * 0.19, 2)})
    await asyncio.sleep(0)  # what would be a query
    lines.sort(key=lambda line: line["total"], reverse=True)
    answer = {"customer": asked["customer"], "lines": lines, "total": sum(line["total"] for line in lines)}
    return json.dumps(answer).encode()


async def _serve(answer: Answer) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            body = await _body(reader, head)
            if b"/processor-time" in head:
                reply = str(time.process_time()).encode()
            else:
                reply = await answer(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply)
            await writer.drain()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


async def _serve_framework(middleware: Callable[[Any], Any]) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def orders(request: Request) -> Response:
        return Response(await _orders(await request.body()), media_type="application/json")

    async def processor_time(_request: Request) -> Response:
        return Response(str(time.process_time()))

    routes = [Route(f"/{one.__name__.replace('_', '-')}", one, methods=["POST"]) for one in (orders, processor_time)]
    config = uvicorn.Config(middleware(Starlette(routes=routes)), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


def _main(way: str, kind: str) -> None:
    answer: Answer = _orders
    middleware: Callable[[Any], Any] = lambda app: app  # noqa: E731  # one of two
    if way == "tracemalloc":
        import tracemalloc

        tracemalloc.start(1)
    elif way == "ledger":
        from memtools.ledger import choose_meter
        from memtools.ledger._ledger import open_owner

        open_owner("service", "scope", meter=choose_meter("native"), activate=False)
    elif way in ("owners", "box"):
        from memtools.decorators import profile_memory
        from memtools.integrations import MemoryMiddleware

        answer = profile_memory(meter="native")(_orders)
        middleware = MemoryMiddleware
    if way == "box":
        from memtools.black_box import BlackBox

        box = BlackBox(name="bench-service")
        box.open()
        os.unlink(box.path)  # it is mapped; a service that is killed in the end would leave it
    asyncio.run(_serve(answer) if kind == "bare" else _serve_framework(middleware))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _main(sys.argv[2], sys.argv[3])
    else:
        print_results(run())
