"""Parents and children refer to each other, and the collector does its work."""

from _shape import play

VERDICT = "none"
OWNER = ""


class Node:
    def __init__(self) -> None:
        self.parent: Node | None = None
        self.child: Node | None = None
        self.text = bytes(2_000)


def step(leaks: bool) -> None:
    for _ in range(100):
        parent, child = Node(), Node()
        parent.child, child.parent = child, parent


if __name__ == "__main__":
    play(step)
