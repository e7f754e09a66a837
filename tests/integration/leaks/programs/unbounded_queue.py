"""A producer that is quicker than its consumer, and a queue without a bound."""

import asyncio

from _shape import play

VERDICT = "python"
OWNER = r"Queue\._queue"

inbox: asyncio.Queue[bytes] = asyncio.Queue()


async def step(leaks: bool) -> None:
    for _ in range(5):
        inbox.put_nowait(bytes(8_000))
    for _ in range(2 if leaks else inbox.qsize()):
        inbox.get_nowait()


if __name__ == "__main__":
    play(step)
