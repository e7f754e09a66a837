"""weakref.finalize with a bound method: its own argument keeps the object alive."""

import weakref

from _shape import play

VERDICT = "python"
OWNER = r"finalize\._registry"


class Lease:
    def __init__(self, leaks: bool) -> None:
        self.body = bytes(8_000)
        weakref.finalize(self, self.give_back if leaks else give_back)

    def give_back(self) -> None:
        self.body = b""


def give_back() -> None:
    return


def step(leaks: bool) -> None:
    for _ in range(5):
        Lease(leaks)


if __name__ == "__main__":
    play(step)
