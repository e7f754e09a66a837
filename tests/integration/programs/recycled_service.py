"""A service that keeps 1 MiB a call of `/leak`, for WSGI and ASGI, and the configuration of gunicorn that recycles it.

Each worker appends to the file `workers` in the current folder when it serves and when it is to be replaced.
"""

import json
import logging
import os
import signal
import time

import memtools.integrations.gunicorn
from memtools.integrations import MemoryMiddleware
from memtools.integrations.gunicorn import recycle_workers
from memtools.integrations.uvicorn import RecyclingMiddleware
from memtools.integrations.wsgi import WSGIMemoryMiddleware
from memtools.readings import resident_bytes

LEAK_BYTES = 2**20
GROWTH = os.environ.get("GROWTH", "20 MiB")
WARM_UP = 5
IS_DEAF = os.environ.get("DEAF") == "1"  # it puts a handler of its own in the place of the server's
if IS_DEAF:
    memtools.integrations.gunicorn.ASK_AGAIN_S = 0.5

kept = []


def note(event):
    with open("workers", "a") as file:
        file.write(json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic()}) + "\n")


class NotesEnds(logging.Handler):
    """Notes when a worker says that it is to be replaced."""

    def emit(self, record):
        if "is to be replaced" in record.getMessage():
            note("leaves")


def note_ends(logger):
    logging.getLogger(logger).addHandler(NotesEnds())


def leak():
    kept.append(b"x" * LEAK_BYTES)
    time.sleep(0.002)  # other requests run meanwhile
    return json.dumps({"pid": os.getpid(), "size": resident_bytes()}).encode()


def route(where):
    return "/leak"


def wsgi(environ, start_response):
    body = leak()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


wsgi = WSGIMemoryMiddleware(wsgi, label=route)


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        note_ends("uvicorn.error")
        note("serves")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = leak()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


asgi = MemoryMiddleware(asgi, label=route)
recycled_asgi = RecyclingMiddleware(asgi, growth=GROWTH, warm_up=WARM_UP)

# The configuration of gunicorn: --config python:recycled_service
recycle = recycle_workers(growth=GROWTH, warm_up=WARM_UP)


def post_worker_init(worker):
    if not hasattr(worker, "callback_notify"):  # a worker of uvicorn notes it in its lifespan
        note_ends("gunicorn.error")
        note("serves")
    if IS_DEAF:
        signal.signal(signal.SIGTERM, lambda *_: note("was asked"))
    recycle(worker)
