"""Allocates and frees without end, in tasks and threads that open and close owners; the parent kills it.

Usage: hungry.py FOLDER KIND. Prints one line when it begins: the path of its black box, the address of the block map's
table of pages, and whether the ledger writes.
"""

import asyncio
import random
import sys
import threading
import time

from memtools import memory_scope, track_tasks
from memtools.black_box import BlackBox
from memtools.ledger import _native

box = BlackBox(sys.argv[1], name="hungry")
KIND = sys.argv[2]


def tell() -> None:
    print(box.path, f"{_native.tables()[1][0]:x}", box.counts_owners, flush=True)


async def worker(number: int) -> None:
    kept: list[object] = []
    chance = random.Random(number)
    while True:
        async with memory_scope(f"request-{number}"):
            for _ in range(20):
                kept.append([{"a": str(chance.random())} for _ in range(chance.randrange(200))])
                if len(kept) > 100:
                    del kept[: chance.randrange(60)]
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
        await asyncio.sleep(0)


def thread(number: int) -> None:
    kept: list[bytearray] = []
    chance = random.Random(number)
    while True:
        with memory_scope(f"thread-{number}"):
            for _ in range(50):
                kept.append(bytearray(chance.randrange(100_000)))
                if len(kept) > 200:
                    del kept[: chance.randrange(150)]
        time.sleep(0.001)


async def mixed() -> None:
    track_tasks(asyncio.get_running_loop())
    with memory_scope("main"):
        box.open()
        for number in range(2):
            threading.Thread(target=thread, args=(number,), daemon=True).start()
        tasks = [asyncio.create_task(worker(number)) for number in range(4)]
        tell()
        await asyncio.wait(tasks)


def turns() -> None:
    """Nothing but openings, closings and small blocks: most instructions are near the ledger's own."""
    kept: list[object] = []
    with memory_scope("outer"):
        box.open()
        tell()
        while True:
            with memory_scope("a"):
                kept.append(str(len(kept)) * 3)
                with memory_scope("b"):
                    kept.append([1, 2, 3])
                    kept.pop()
            if len(kept) > 40:
                kept.clear()


def sweep() -> None:
    """Owners whose every call leaves a block behind, until all numbers are in use and the counters are merged."""
    kept: list[object] = []
    chance = random.Random(1)
    with memory_scope("outer"):
        box.open()
        for number in range(33_500):
            with memory_scope(f"left-{number % 50}"):
                kept.append(str(number) * 3)
        tell()
        while True:
            with memory_scope(f"left-{chance.randrange(50)}"):
                kept.append(str(chance.random()) * 3)
            if len(kept) > 40_000:
                del kept[: chance.randrange(20_000)]


def counters() -> None:
    """The same by the calls that scopes make, so that there is hardly any instruction in between."""
    text = b"x"
    with memory_scope("outer"):
        first, second, total = _native.Counter(), _native.Counter(), _native.AccountTotals()
        box.open()
        tell()
        while True:
            below = _native.Counter(first)
            below.attach_account(total)
            _native.switch(below)
            one = text * 100
            _native.switch(second)
            two = text * 300
            del one  # credited to `below`, in the middle of another one's segment
            _native.switch(first)
            three = text * 200
            _native.switch(below)
            four = text * 50
            del three, two
            below.close()
            _native.switch(first)
            del below  # its number is free when its last block is
            del four


if KIND == "mixed":
    asyncio.run(mixed())
elif KIND == "counters":
    counters()
elif KIND == "turns":
    turns()
else:
    sweep()
