"""A function dispatches on types that are made at run time, each with an implementation of its own."""

import functools
from itertools import count

from _shape import play

VERDICT = "python"
OWNER = r"singledispatch|registry|encode"


@functools.singledispatch
def encode(value: object) -> bytes:
    return b""


class Row:
    pass


numbers = count()
encode.register(Row, lambda row: b"row")


def step(leaks: bool) -> None:
    for _ in range(4):
        if leaks:
            made = type(f"Row{next(numbers)}", (Row,), {"text": bytes(4_000)})
            encode.register(made, lambda row: b"made")
            encode(made())
        else:
            encode(Row())


if __name__ == "__main__":
    play(step)
