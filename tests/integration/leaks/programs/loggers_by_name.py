"""A logger for each connection: the manager keeps every name for good."""

import logging
from itertools import count

from _shape import play

VERDICT = "python"
OWNER = r"loggerDict"

numbers = count()


def step(leaks: bool) -> None:
    for _ in range(40):
        name = f"connection.{next(numbers)}" if leaks else "connection"
        logging.getLogger(name).debug("opened")


if __name__ == "__main__":
    play(step)
