"""A service whose workers share one budget by `MEMTOOLS_CLUSTER`: for WSGI, ASGI and Celery, with one monitor each.

Each block of work writes when it began and ended into the file `blocks` of the folder `FOLDER`, by the clock that all
processes share, with what it had leased.
"""

import asyncio
import json
import os
import time

from memtools import MemoryMonitor

FOLDER = os.environ["FOLDER"]
MIB = 2**20

kept = []
monitor = MemoryMonitor(warning="250 MiB", critical="400 MiB", min_interval=0.05, max_interval=0.2)


def note(**values):
    line = json.dumps({"pid": os.getpid(), "at": time.monotonic()} | values) + "\n"
    file = os.open(FOLDER + "/blocks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)


def hold(size_bytes, seconds):
    with monitor.admit(size_bytes):
        note(change=size_bytes)
        time.sleep(seconds)
        note(change=-size_bytes)


async def hold_async(size_bytes, seconds):
    async with monitor.admit(size_bytes):
        note(change=size_bytes)
        await asyncio.sleep(seconds)
        note(change=-size_bytes)


def grow():
    """Be critical from now on."""
    kept.append(b"x" * (400 * MIB))
    monitor.check()


def parse(path):
    name, *numbers = path.strip("/").split("/")
    return name, [float(number) for number in numbers]


def wsgi(environ, start_response):
    name, numbers = parse(environ["PATH_INFO"])
    if name == "hold":
        hold(int(numbers[0]), numbers[1])
    elif name == "grow":
        grow()
    body = json.dumps({"pid": os.getpid(), "level": monitor.level.name}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        async with monitor:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    name, numbers = parse(scope["path"])
    if name == "hold":
        await hold_async(int(numbers[0]), numbers[1])
    elif name == "grow":
        grow()
    body = json.dumps({"pid": os.getpid(), "level": monitor.level.name}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# The configuration of gunicorn, as in the recipe: --config python:pooled_service
def post_worker_init(worker):
    if not hasattr(worker, "callback_notify"):  # one of uvicorn starts the monitor in its lifespan
        monitor.start()


def worker_exit(server, worker):
    monitor.stop()
