"""Buffers for a C library are kept in a list for as long as it might write there."""

import ctypes

from _shape import play

VERDICT = "python"
OWNER = r"Device\.lent"


class Device:
    def __init__(self) -> None:
        self.lent: list[object] = []

    def read(self, leaks: bool) -> None:
        buffer = ctypes.create_string_buffer(8_000)
        ctypes.memset(buffer, 1, 8_000)
        self.lent.append(buffer)
        if not leaks:
            self.lent.remove(buffer)


device = Device()


def step(leaks: bool) -> None:
    for _ in range(5):
        device.read(leaks)


if __name__ == "__main__":
    play(step)
