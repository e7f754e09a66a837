"""A timeout of an hour is set for each request, and not cancelled when the request is done."""

import asyncio

from _shape import play

VERDICT = "python"
OWNER = r"_scheduled"


def give_up(body: bytes) -> None:
    return


async def step(leaks: bool) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(5):
        timer = loop.call_later(3_600, give_up, bytes(8_000))
        if not leaks:
            timer.cancel()


if __name__ == "__main__":
    play(step)
