"""A dict of a module holds the result of each request, by its number."""

from itertools import count

from _shape import play

VERDICT = "python"
OWNER = r"__main__\.results"

results: dict[int, dict[str, object]] = {}
numbers = count()


def step(leaks: bool) -> None:
    for _ in range(10):
        number = next(numbers)
        results[number if leaks else number % 100] = {"number": number, "body": bytes(3_000)}


if __name__ == "__main__":
    play(step)
