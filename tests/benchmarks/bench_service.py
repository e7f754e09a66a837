"""Requests that an asyncio JSON service serves per second of processor time, with and without a ledger.

Covers: a service on loopback, in a process of its own and with a client in another: off, the ledger counting for the
process as a whole, each request an owner, tracemalloc. Leaves to others: what the pieces of it cost (`bench_drivers`,
`bench_native`).

A ratio is processor time per request, ours divided by that of the same round without a ledger: 1.075 is 0.93 of the
requests per second. The service reads HTTP requests of some orders (60 bytes of JSON each), sums them up, and answers
with as many lines. With 50 orders it does little else than make objects; with 4 it is like services whose requests are
small, and tracemalloc leaves it about a quarter of its requests, which is what the target goes by.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from _compare import Result, print_results

REQUESTS = 2_000  # per figure, over all connections
CONNECTIONS = 8
ORDERS = (4, 50)
WAYS = ("off", "ledger", "owners", "tracemalloc")

Answer = Callable[[bytes], Awaitable[bytes]]


def run(rounds: int = 15) -> list[Result]:
    """Return processor time per request, divided by that without a ledger."""
    return [result for orders in ORDERS for result in _compared(orders, rounds)]


def _compared(orders: int, rounds: int) -> list[Result]:
    figures: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for number in range(rounds):
        for way in order:
            if way != "tracemalloc" or number < 3:  # far off, and slow
                figures[way].append(_seconds_per_request(way, orders))
        order.append(order.pop(0))

    traced = _ratio(figures["tracemalloc"], figures["off"])
    words = f"{statistics.median(figures['off']) * 1e6:.0f} us per request without; tracemalloc {1 / traced:.2f}"
    return [
        _result(f"{orders} orders, each request an owner", figures["owners"], figures["off"], 0.93, words),
        _result(f"{orders} orders, the ledger alone", figures["ledger"], figures["off"], 0.97, words),
    ]


def _result(title: str, ours: list[float], off: list[float], share: float, note: str) -> Result:
    ratio = _ratio(ours, off)
    words = f"processor time per request: {1 / ratio:.2f} of the requests, target {share}; {note}"
    return Result(f"asyncio JSON service: {title}", "the service without it", ratio, 1 / share, words)


def _ratio(ours: list[float], off: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, off, strict=False))


def _seconds_per_request(way: str, orders: int) -> float:
    with _server(way) as port:
        asyncio.run(_load(port, REQUESTS // 4, orders))
        before = asyncio.run(_processor_time(port))
        asyncio.run(_load(port, REQUESTS, orders))
        return (asyncio.run(_processor_time(port)) - before) / REQUESTS


@contextmanager
def _server(way: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", way], stdout=subprocess.PIPE, text=True)
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
    body = json.dumps({"customer": "somebody", "orders": asked}).encode()
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


def _main(way: str) -> None:
    answer: Answer = _orders
    if way == "tracemalloc":
        import tracemalloc

        tracemalloc.start(1)
    elif way == "ledger":
        from memtools.ledger import choose_meter, open_owner

        open_owner("service", "scope", meter=choose_meter("native"), binds=False)
    elif way == "owners":
        from memtools.decorators import profile_memory

        answer = profile_memory(meter="native")(_orders)
    asyncio.run(_serve(answer))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _main(sys.argv[2])
    else:
        print_results(run())
