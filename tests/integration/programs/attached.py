"""A program to attach to: the first word says what its main thread does, the second is the folder of its black box.

Without a second word there is no monitor. Each kind leaves 1,000 bytes behind in each call of `handle`, where it can.
"""

import asyncio
import os
import select
import sys
import threading
import time
from collections.abc import Callable

KEPT: list[bytes] = []


def handle() -> None:
    """Keep a kilobyte."""
    KEPT.append(bytes(1000))


def scoped() -> None:
    """Do the same as an owner of its own, where memtools is there."""
    from memtools import memory_scope

    with memory_scope("POST /orders"):
        handle()


WORK: Callable[[], None] = scoped if sys.argv[2:] else handle


def work() -> None:
    """Work for ever."""
    while True:
        WORK()
        time.sleep(0.005)


async def busy() -> None:
    """Work for ever on a loop."""

    async def serve() -> None:
        while True:
            WORK()
            await asyncio.sleep(0.005)

    await asyncio.gather(*(serve() for _ in range(3)))


async def idle() -> None:
    """Wait for ever on a loop."""
    await asyncio.Event().wait()


def threads() -> None:
    """Work in two threads, and wait for the first."""
    workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    workers[0].join()


def event() -> None:
    """Wait for what never comes; another thread works."""
    threading.Thread(target=work, daemon=True).start()
    threading.Event().wait()


def blocked() -> None:
    """Wait in a call of the system."""
    select.select([os.pipe()[0]], [], [])


def in_c() -> None:
    """Run C code that keeps the GIL for some seconds."""
    sum(range(10**8))
    work()


RUN: dict[str, Callable[[], None]] = {
    "busy": lambda: asyncio.run(busy()),
    "idle": lambda: asyncio.run(idle()),
    "threads": threads,
    "event": event,
    "blocked": blocked,
    "in_c": in_c,
    "work": work,
}


async def _with_task(folder: str, main: Callable[[], object]) -> None:
    from memtools import MemoryMonitor

    async with MemoryMonitor(black_box=folder):
        print("ready", flush=True)
        await main()  # type: ignore[misc]


if __name__ == "__main__":
    kind = sys.argv[1]
    if not sys.argv[2:]:
        print("ready", flush=True)
        RUN[kind]()
    elif kind in ("busy", "idle"):
        asyncio.run(_with_task(sys.argv[2], {"busy": busy, "idle": idle}[kind]))
    else:
        from memtools import MemoryMonitor

        with MemoryMonitor(black_box=sys.argv[2]):
            print("ready", flush=True)
            RUN[kind]()
