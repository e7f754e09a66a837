"""A handler starts its successor and adds to a context variable: each context holds the values of all before."""

import asyncio
import contextvars

from _shape import play

VERDICT = "python"
OWNER = r"trail|Link|poll|Context"

trail: contextvars.ContextVar["Link | None"] = contextvars.ContextVar("trail", default=None)


class Link:
    def __init__(self, before: "Link | None") -> None:
        self.before = before
        self.body = bytes(30_000)


async def poll(leaks: bool) -> None:
    trail.set(Link(trail.get() if leaks else None))
    await asyncio.sleep(0.04)
    following = asyncio.get_running_loop().create_task(poll(leaks))
    running.add(following)
    following.add_done_callback(running.discard)


running: set[asyncio.Task[None]] = set()


async def step(leaks: bool) -> None:
    if not running:
        running.add(asyncio.get_running_loop().create_task(poll(leaks)))


if __name__ == "__main__":
    play(step)
