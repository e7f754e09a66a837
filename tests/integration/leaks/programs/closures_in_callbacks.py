"""Each request subscribes a callback that closes over it, and never unsubscribes."""

from collections.abc import Callable

from _shape import play

VERDICT = "python"
OWNER = r"Bus\.listeners"


class Bus:
    def __init__(self) -> None:
        self.listeners: list[Callable[[], int]] = []


bus = Bus()


def handle(leaks: bool) -> None:
    body = bytes(8_000)

    def on_change() -> int:
        return len(body)

    bus.listeners.append(on_change)
    if not leaks:
        bus.listeners.remove(on_change)


def step(leaks: bool) -> None:
    for _ in range(5):
        handle(leaks)


if __name__ == "__main__":
    play(step)
