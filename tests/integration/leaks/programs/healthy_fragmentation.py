"""Bursts of which a few survivors stay until the next burst: pages that cannot be given back, always as many."""

import random

from _shape import play

VERDICT = "none"
OWNER = ""

dice = random.Random(7)
survivors: list[bytes] = []
steps = 0


def step(leaks: bool) -> None:
    global steps
    steps += 1
    if steps % 10:
        return
    burst = [bytes(dice.randrange(100, 3_000)) for _ in range(6_000)]
    survivors[:] = burst[::40]


if __name__ == "__main__":
    play(step)
