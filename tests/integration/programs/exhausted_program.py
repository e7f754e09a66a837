"""A program whose memory is exhausted from its first second on. Run, not imported, by tests.

    python exhausted_program.py KIND REPORT

KIND: `script`, `asyncio`, `drain`, `deaf` (a handler that ignores SIGTERM), `asked` (ended by SIGTERM of another
process, while memory is normal) or `uvicorn`. What it does is told on stdout.
"""

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
import time

from memtools import MemoryMonitor
from memtools.errors import AdmissionRefused
from memtools.monitor import MemorySource
from memtools.readings import Headroom, Limit, LimitSource

MIB = 2**20
started = time.monotonic()


def say(*words: object) -> None:
    """Tell it in one write."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def make_monitor(used_mib: int = 900) -> MemoryMonitor:
    """Return a monitor with scripted memory; its steps of clean-up give nothing back."""
    source = MemorySource(
        used=lambda: used_mib * MIB,
        limit=lambda: Limit(1000 * MIB, LimitSource.USER),
        headroom=lambda: Headroom(100 * MIB, LimitSource.USER, (), 100 * MIB),
        clock=time.monotonic,
    )
    return MemoryMonitor("60%", "80%", source=source, exhausted_after=0.3, max_interval=0.1, pressure=False)


def wait(seconds: float = 20.0) -> None:
    """Work until the end comes."""
    atexit.register(say, "atexit")
    try:
        while time.monotonic() - started < seconds:
            time.sleep(0.01)
        say("the end did not come")
    finally:
        say("finally")


def drain(monitor: MemoryMonitor) -> None:
    """Work in a block that ends within the grace, and ask for another one meanwhile."""
    inside = threading.Event()

    def work() -> None:
        with monitor.admit():
            inside.set()
            while monitor.health().status != "ending":
                time.sleep(0.01)
            time.sleep(0.3)
            say("drained")

    def ask() -> None:
        inside.wait()
        try:
            with monitor.admit():
                say("admitted")
        except AdmissionRefused:
            say("refused")

    threads = [threading.Thread(target=each) for each in (work, ask)]
    for thread in threads:
        thread.start()
    wait()


async def main() -> None:
    """Do the same with a task as the sampling loop."""
    monitor = make_monitor()
    monitor.exit_when_exhausted(grace=5)
    try:
        async with monitor:
            await asyncio.sleep(20)
    finally:
        say("finally")


def serve(monitor: MemoryMonitor) -> None:
    """Serve with uvicorn, which has a request in progress when the end comes."""
    import uvicorn

    async def app(scope, receive, send):  # ASGI
        while monitor.health().status != "ending":  # noqa: ASYNC110  # a status sets no event
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=_tell_port, args=(server,), daemon=True).start()
    server.run()


def _tell_port(server) -> None:
    while not server.started:
        time.sleep(0.01)
    say(server.servers[0].sockets[0].getsockname()[1])


if __name__ == "__main__":
    kind, report_file = sys.argv[1:]
    logging.basicConfig(format="%(levelname)s %(message)s")
    if kind == "asyncio":
        asyncio.run(main())
    elif kind == "asked":
        monitor = make_monitor(used_mib=100)
        monitor.exit_when_exhausted(grace=5)
        with monitor:
            say("started")
            wait()
    else:
        if kind == "deaf":
            signal.signal(signal.SIGTERM, lambda *_: say("ignored"))
        monitor = make_monitor()
        monitor.exit_when_exhausted(
            grace=1 if kind == "deaf" else 8, code=77 if kind == "deaf" else 75, report_file=report_file
        )
        with monitor:
            {"drain": drain, "uvicorn": serve}.get(kind, lambda _: wait())(monitor)
