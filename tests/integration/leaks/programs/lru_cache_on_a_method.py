"""An lru_cache on a method keeps every instance that it was called on."""

import functools

from _shape import play

VERDICT = "python"
OWNER = r"lru_cache wrapper of Shape\.area"


class Shape:
    def __init__(self, side: int) -> None:
        self.side = side
        self.pixels = bytes(8_000)

    @functools.cache  # noqa: B019  # the leak itself
    def area(self) -> int:
        return self.side**2

    def area_anew(self) -> int:
        return self.side**2


def step(leaks: bool) -> None:
    for number in range(5):
        shape = Shape(number)
        shape.area() if leaks else shape.area_anew()


if __name__ == "__main__":
    play(step)
