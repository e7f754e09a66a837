"""The workers of a pool keep what they have parsed in a threading.local, and never drop it."""

import threading
from concurrent.futures import ThreadPoolExecutor

from _shape import play

VERDICT = "python"
OWNER = r"_local|parse|parsed"

local = threading.local()
pool = ThreadPoolExecutor(2)


def parse(number: int, leaks: bool) -> None:
    parsed = local.__dict__.setdefault("parsed", [])
    parsed.append(bytes(8_000 + number))
    if not leaks:
        parsed.clear()


def step(leaks: bool) -> None:
    for number in range(5):
        pool.submit(parse, number, leaks).result()


if __name__ == "__main__":
    play(step)
    pool.shutdown()
