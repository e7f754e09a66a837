"""Patterns by the thousand: re keeps the last 512."""

import re
from itertools import count

from _shape import play

VERDICT = "none"
OWNER = ""

numbers = count()


def step(leaks: bool) -> None:
    for _ in range(15):
        re.search(f"order {next(numbers)} (is|was) late", "order 7 is late")


if __name__ == "__main__":
    play(step)
