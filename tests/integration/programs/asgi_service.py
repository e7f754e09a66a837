"""A FastAPI service of every kind of endpoint, with `MemoryMiddleware` and a monitor unless `PLAIN=1`.

Each worker writes the account of each request, once it has ended, into a file of its own in the current folder. With
`PLAIN=1` it is the same service without memtools, to compare the answers with.
"""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

IS_PLAIN = os.environ.get("PLAIN") == "1"

kept = []
seen_outside = {}


@asynccontextmanager
async def lifespan(app):
    if IS_PLAIN:
        yield
        return
    from write_accounts import write

    from memtools import MemoryMonitor
    from memtools.events import subscribe

    async with MemoryMonitor(warning="2 GiB", critical="4 GiB", name="shop") as app.state.monitor:
        with subscribe(write):
            yield


app = FastAPI(lifespan=lifespan)


def hold(size_bytes):
    block = bytearray(size_bytes)
    kept.append(block)
    return len(block)


@app.get("/async/{size}")
async def asynchronous(size: int):
    held = 0
    for _ in range(10):
        held += hold(size // 10)
        await asyncio.sleep(0.001)
    return {"held": held}


@app.get("/plain/{size}")
def plain(size: int):
    return {"held": hold(size)}


@app.get("/gather/{size}")
async def gather(size: int):
    async def one():
        await asyncio.sleep(0)
        return hold(size // 4)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(one())
        second = group.create_task(asyncio.to_thread(hold, size // 4))
    return {"held": sum(await asyncio.gather(one(), one())) + first.result() + second.result()}


@app.get("/background/{size}")
async def background(size: int, tasks: BackgroundTasks):
    tasks.add_task(hold, size)
    return {"held": 0}


def resource(size: int):
    block = bytearray(size)
    yield block
    kept.append(block)


@app.get("/dependency/{size}")
def dependency(block=Depends(resource)):  # noqa: B008  # the way of FastAPI
    return {"held": len(block)}


@app.get("/stream/{size}")
async def stream(size: int):
    async def body():
        for n in range(4):
            hold(size // 4)
            yield f"{n} "
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/stream-plain/{size}")
def stream_plain(size: int):
    def body():
        for n in range(4):
            hold(size // 4)
            yield f"{n} "

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/limit/{size}")
async def limit(size: int):
    parts = []
    while sum(map(len, parts)) < size:
        parts.append(bytearray(100_000))
        await asyncio.sleep(0)
    return {"held": sum(map(len, parts))}


@app.get("/denied")
async def denied():
    raise HTTPException(418, "no coffee", headers={"x-kind": "teapot"})


@app.get("/fails")
async def fails():
    raise KeyError("a fault of the endpoint")


@app.exception_handler(KeyError)
async def on_key_error(request: Request, error):
    from fastapi.responses import JSONResponse

    return JSONResponse({"handled": str(error)}, status_code=400)


@app.websocket("/echo")
async def echo(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text * 2)


@app.get("/outside/{requests}")
async def outside(requests: int):
    while len(seen_outside) < requests:  # noqa: ASYNC110  # an answer may arrive before its request has ended
        await asyncio.sleep(0.001)
    return dict(seen_outside)


@app.get("/watch")
async def watch(request: Request):
    monitor = request.app.state.monitor
    return {"pid": os.getpid(), "level": monitor.level.name, "mode": monitor.statistics().mode}


async def pass_on(request: Request, call_next):
    response = await call_next(request)
    response.headers["x-passed"] = "inside"
    return response


class Outer:
    """Reads what the application wrote into the scope, as access logs and tracing do."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
        if scope["type"] == "http" and not scope["path"].startswith("/outside"):
            route = getattr(scope.get("route"), "path", None)
            seen_outside[scope["method"] + scope["path"]] = [
                route,
                scope.get("path_params"),
                type(scope).__name__,
                sorted(scope),
            ]


app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
app.add_middleware(GZipMiddleware, minimum_size=10)
if not IS_PLAIN:
    from memtools.integrations import MemoryMiddleware

    app.add_middleware(MemoryMiddleware, budget="24 MB")
app.add_middleware(CORSMiddleware, allow_origins=["*"])
app.add_middleware(Outer)
