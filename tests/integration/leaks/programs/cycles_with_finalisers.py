"""Circular references whose finaliser puts them back into a pool from which nothing is taken."""

from _shape import play

VERDICT = "python"
OWNER = r"Connection\.pool|Connection"


class Connection:
    pool: "list[Connection]" = []  # noqa: RUF012  # the leak itself

    def __init__(self, leaks: bool) -> None:
        self.itself = self
        self.leaks = leaks
        self.buffer = [bytes(200) for _ in range(10)]

    def __del__(self) -> None:
        if self.leaks:
            self.pool.append(self)


def step(leaks: bool) -> None:
    for _ in range(20):
        Connection(leaks)


if __name__ == "__main__":
    play(step)
