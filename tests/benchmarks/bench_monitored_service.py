"""The slow requests of a real service under load, with all of memtools and without it.

The 99th percentile, and the median, of the latency that clients see, while each request leaves 100 kB behind: 150 MB in
a run, so that the monitored service reaches its warning level, and cleans up, in the middle of the load.

The service is `tests/integration/leaking_service.py`, under uvicorn, in its own process. Rounds are interleaved, each
with a new service; a ratio is the median over the rounds.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _compare import Result, print_results

SERVICE = Path(__file__).parents[1] / "integration" / "leaking_service.py"
BODY = json.dumps({"lines": [{"id": number, "price": number * 1.5, "count": 3} for number in range(50)]}).encode()
CONNECTIONS, REQUESTS = 4, 1_500


def run(rounds: int = 15) -> list[Result]:
    """Return waits for a watched service, divided by those for a bare one."""
    waits: dict[str, list[tuple[float, float]]] = {"bare": [], "watched": []}
    order = list(waits)
    for _ in range(min(rounds, 9)):
        for kind in order:
            waits[kind].append(_waits(kind))
        order.reverse()
    return [_result("99th percentile", waits, 1, 2.0), _result("median", waits, 0, 1.5)]


def _result(title: str, waits: dict[str, list[tuple[float, float]]], place: int, target: float) -> Result:
    bare, watched = ([figures[place] for figures in waits[kind]] for kind in ("bare", "watched"))
    ratio = statistics.median(one / other for one, other in zip(watched, bare, strict=True))
    note = f"{statistics.median(watched) * 1000:.1f} ms against {statistics.median(bare) * 1000:.1f} ms, in wall time"
    return Result(f"request of a service that leaks and is cleaned: {title}", "the same without memtools", ratio,
                  target, note)  # fmt: skip


def _waits(kind: str) -> tuple[float, float]:
    with _service(kind) as port:
        asyncio.run(_load(port, 200))  # warms up
        seconds = sorted(asyncio.run(_load(port, REQUESTS)))
    return seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]


@contextmanager
def _service(kind: str) -> Iterator[int]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "32768"}
    command = [sys.executable, str(SERVICE), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def _load(port: int, requests: int) -> list[float]:
    each = await asyncio.gather(*(_ask(port, requests // CONNECTIONS) for _ in range(CONNECTIONS)))
    return [seconds for of_one in each for seconds in of_one]


async def _ask(port: int, times: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    waits = []
    for _ in range(times):
        began = time.perf_counter()
        writer.write(head + BODY)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer.partition(b"\r\n")[0] + b" ", answer
        lines = (line.partition(b":") for line in answer.lower().split(b"\r\n"))
        length = next(int(value) for name, _, value in lines if name == b"content-length")
        await reader.readexactly(length)
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)  # a client that thinks: the load has a bound
    writer.close()
    await writer.wait_closed()
    return waits


if __name__ == "__main__":
    print_results(run())
