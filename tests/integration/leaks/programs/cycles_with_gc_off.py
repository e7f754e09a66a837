"""The collector was turned off for speed, and parents and children refer to each other."""

import gc

from _shape import play

VERDICT = "python"
OWNER = r"Node .*only a cycle keeps it|Node .*collector is off"


class Node:
    def __init__(self) -> None:
        self.parent: Node | None = None
        self.child: Node | None = None
        self.text = bytes(2_000)


def step(leaks: bool) -> None:
    gc.disable()
    for _ in range(10):
        parent, child = Node(), Node()
        parent.child, child.parent = child, parent
        if not leaks:
            child.parent = None


if __name__ == "__main__":
    play(step)
