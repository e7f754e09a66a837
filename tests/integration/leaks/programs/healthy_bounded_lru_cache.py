"""An lru_cache with a bound, that is full after some seconds."""

import functools
from itertools import count

from _shape import play

VERDICT = "none"
OWNER = ""


@functools.lru_cache(maxsize=500)
def load(number: int) -> bytes:
    return bytes(8_000 + number % 10)


numbers = count()


def step(leaks: bool) -> None:
    for _ in range(12):
        load(next(numbers))


if __name__ == "__main__":
    play(step)
