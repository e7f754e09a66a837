"""Errors are kept for a summary, and with each its traceback and every variable on the way."""

from _shape import play

VERDICT = "python"
OWNER = r"Importer\.failures"


class Importer:
    def __init__(self) -> None:
        self.failures: list[object] = []

    def load(self, number: int) -> None:
        text = b"x" * 8_000
        raise ValueError(f"line {number} of {len(text)}")

    def try_load(self, number: int, leaks: bool) -> None:
        try:
            self.load(number)
        except ValueError as error:
            self.failures.append(error if leaks else None)
            if not leaks:
                del self.failures[:-100]


importer = Importer()


def step(leaks: bool) -> None:
    for number in range(5):
        importer.try_load(number, leaks)


if __name__ == "__main__":
    play(step)
