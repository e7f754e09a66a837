"""A program that allocates without pause while its box is read: each owner holds between BASE and BASE + SWING bytes.

The second word says how many owners of their own name there are beside them, which hold some bytes each.
"""

import asyncio
import random
import sys
import threading
import time

from memtools import memory_scope
from memtools.black_box import BlackBox
from memtools.readings import Reading

FOLDER, OTHERS = sys.argv[1], int(sys.argv[2])
BASE, SWING = 1 << 20, 1 << 18
kept: list[object] = []
chance = random.Random(1)


def swing() -> int:
    return chance.randrange(SWING // 4, SWING)


async def work(number: int) -> None:
    with memory_scope(f"worker-{number}"):
        base = bytes(BASE)
        while True:
            block = bytes(swing())  # all at once, and in small parts: a flush comes in between
            await asyncio.sleep(0)
            del block
            with memory_scope("call"):
                parts = [str(each) for each in range(20)]
            await asyncio.sleep(0)
            del parts
            size = swing() // 64 - 64
            blocks = [bytes(size) for _ in range(64)]
            await asyncio.sleep(0)
            blocks.clear()
            kept[:] = [base]


def work_in_thread(number: int) -> None:
    with memory_scope(f"worker-{number}"):
        base = bytes(BASE)
        while base:
            size = swing() // 64 - 64
            blocks = [bytes(size) for _ in range(64)]
            del blocks
            time.sleep(0)


async def hold(number: int, until: asyncio.Event) -> None:
    # The ledger keeps so many names below one owner, and no more.
    with memory_scope(f"group-{number // 100}"), memory_scope(f"GET /orders/{number:05}"):
        rows = [str(each) for each in range(10)]
        await until.wait()
        del rows


async def observe(box: BlackBox) -> None:
    for number in range(1_000_000):
        box.observe(Reading((100 << 20) + number, 1 << 30, time.monotonic()))
        if number == 0:
            print("ready", flush=True)
        await asyncio.sleep(0.01)


async def main(box: BlackBox) -> None:
    until = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(work(number))
        for number in range(OTHERS):
            tasks.create_task(hold(number, until))
        await asyncio.sleep(0.1)
        tasks.create_task(observe(box))


with BlackBox(FOLDER, name="writing") as black_box:
    for each in (4, 5):
        threading.Thread(target=work_in_thread, args=(each,), daemon=True).start()
    asyncio.run(main(black_box))
