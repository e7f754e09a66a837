"""Each request waits for an answer that never comes, without a timeout."""

import asyncio

from _shape import play

VERDICT = "python"
OWNER = r"wait_for_answer|Event\._waiters"


async def wait_for_answer(answer: asyncio.Event) -> None:
    request = bytes(8_000)
    await answer.wait()
    del request


kept: set[asyncio.Task[None]] = set()
lost = asyncio.Event()


async def step(leaks: bool) -> None:
    for _ in range(5):
        waiting = wait_for_answer(lost)
        if not leaks:
            waiting = asyncio.wait_for(waiting, timeout=0.2)
        task = asyncio.get_running_loop().create_task(_quietly(waiting))
        kept.add(task)
        task.add_done_callback(kept.discard)


async def _quietly(waiting) -> None:
    try:
        await waiting
    except TimeoutError:
        return


if __name__ == "__main__":
    play(step)
