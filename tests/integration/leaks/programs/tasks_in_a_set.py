"""Tasks are kept in a set so that they are not collected, and never discarded when they are done."""

import asyncio

from _shape import play

VERDICT = "python"
OWNER = r"Notifier\.running|Notifier\.send|deliver"


class Notifier:
    def __init__(self) -> None:
        self.running: set[asyncio.Task[bytes]] = set()

    async def deliver(self, number: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(4_000 + number)

    def send(self, leaks: bool) -> None:
        for number in range(10):
            task = asyncio.get_running_loop().create_task(self.deliver(number))
            self.running.add(task)
            if not leaks:
                task.add_done_callback(self.running.discard)


notifier = Notifier()


async def step(leaks: bool) -> None:
    notifier.send(leaks)


if __name__ == "__main__":
    play(step)
