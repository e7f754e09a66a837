"""Much is made and dropped in each step."""

from _shape import play

VERDICT = "none"
OWNER = ""


def step(leaks: bool) -> None:
    rows = [{"number": number, "text": "x" * (number % 900)} for number in range(3_000)]
    {row["text"]: row for row in rows}  # noqa: B018  # made and dropped


if __name__ == "__main__":
    play(step)
