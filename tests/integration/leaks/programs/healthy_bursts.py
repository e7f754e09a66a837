"""A large request now and then."""

import random

from _shape import play

VERDICT = "none"
OWNER = ""

dice = random.Random(3)


def step(leaks: bool) -> None:
    if dice.random() < 0.03:
        rows = [bytes(1_000) for _ in range(dice.randrange(5_000, 15_000))]
        rows.clear()


if __name__ == "__main__":
    play(step)
