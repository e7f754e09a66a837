"""Pages are mapped for each message, and the maps are never closed."""

import mmap

from _shape import play

VERDICT = "fragmentation|native"  # resident memory that neither Python nor C has given out
OWNER = r"Ring\.pages"


class Ring:
    def __init__(self) -> None:
        self.pages: list[mmap.mmap] = []

    def write(self, leaks: bool) -> None:
        page = mmap.mmap(-1, 64 << 10)
        page.write(b"z" * (64 << 10))
        self.pages.append(page)
        if not leaks:
            self.pages.pop().close()


ring = Ring()


def step(leaks: bool) -> None:
    ring.write(leaks)


if __name__ == "__main__":
    play(step)
